"""Plan a run before it runs: parameters, FLOPs, and the memory, collectives and time of its step on a TPU slice."""
