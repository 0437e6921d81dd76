"""Objectives: what a model is trained to do. Each is a frozen dataclass with `init` and `loss`."""
