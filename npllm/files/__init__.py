"""Reads and writes files safely: whole or not at all, bounded, by one process at a
time.
"""
