"""Trained models: save and restore checkpoints, load a model, begin with one, write one out."""
