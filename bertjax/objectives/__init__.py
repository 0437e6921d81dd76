"""Objectives: what a model is trained for. Each is a frozen dataclass with `init` and `loss`."""
