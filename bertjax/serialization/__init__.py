"""Experiments and models as JSON, and JSON of others read within bounds."""
