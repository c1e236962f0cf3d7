"""Where arrays live: aligned memory, and the arena of a pass."""
