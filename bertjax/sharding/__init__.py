"""Sharding: the mesh, where arrays lie on it, and what moves between devices inside a step."""
