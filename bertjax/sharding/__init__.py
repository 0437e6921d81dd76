"""Sharding: the mesh, the partition specs of arrays on it, and the communication between devices inside a step."""
