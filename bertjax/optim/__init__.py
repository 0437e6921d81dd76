"""Optimisers and learning-rate schedules, as optax transformations."""
