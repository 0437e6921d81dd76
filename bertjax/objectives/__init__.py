"""Objectives: models with the losses that they are trained with. Each is a frozen dataclass with `init` and `loss`."""
