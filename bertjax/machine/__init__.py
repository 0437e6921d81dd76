"""Machines: TPU chips and slices, compiler flags, diagnosis."""
