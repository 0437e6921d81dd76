"""Hugging Face folders, read and written: one table a family of models, read in both directions."""
