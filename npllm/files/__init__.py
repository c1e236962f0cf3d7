"""Reading and writing files without harm: whole or not at all, bounded, by one process at a time."""
