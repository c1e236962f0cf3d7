"""Benchmarks: `python -m benchmarks kernels|train [--json FILE]`.

Everything is measured as a ratio within one run: the machine's own peak, NumPy and the kernels take turns, and what is
timed is first checked to give the right result.
"""
