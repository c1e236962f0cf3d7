"""Reads and writes files safely: whole or not at all, bounded, under a lock."""
