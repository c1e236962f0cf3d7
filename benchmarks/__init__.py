"""Benchmarks: `python -m benchmarks --help`.

Everything is measured side by side within one run, in turns, and what is timed is first checked to give the right
result. Figures are medians; the spread is half the distance between the quartiles.

The peers, PyTorch above all, run in the interpreter that NPLLM_TORCH_PYTHON names, for example of an environment made
with `pip install torch==2.13.0 transformers tiktoken`. Without it their columns say so.
"""
