"""Benchmarks: `python -m benchmarks --help`.

All contenders are measured in turns within one run, and each is checked for the right
result before it is timed. Figures are medians; the spread is half the distance between
the quartiles.

The peers, mainly PyTorch, run in the interpreter that NPLLM_PEERS_PYTHON names, for
example in an environment made with `pip install torch==2.13.0 transformers tiktoken`.
Without it, a line says that they did not take part.
"""
