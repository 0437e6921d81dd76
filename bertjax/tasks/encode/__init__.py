"""Encoders of labelled examples, a file for each kind: texts, choices, tagged words, questions on contexts."""
