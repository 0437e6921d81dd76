"""Encoders: tokens in, hidden states out."""
