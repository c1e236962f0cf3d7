"""Aligned memory, and the arena of a pass."""
