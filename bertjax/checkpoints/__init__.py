"""Trained models: save and restore checkpoints, load a model, warm-start from one, export one."""
