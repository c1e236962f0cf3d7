"""`benchmarks ladder`: the same operation from a loop in Python up to the kernel that ships.

Three rungs are the same lines of code: a loop as one would write it at first, run by Python, compiled by Numba, and
split by Numba between the cores. Then NumPy, npllm's kernel and PyTorch. One file per operation.
"""
