"""Labelled data: tasks, file formats, rows with labels, metrics."""
