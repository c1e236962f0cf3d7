"""What is timed in a process of its own: other people's libraries, and npllm where the two are compared.

`process` is this side of the pipe, `serving` the other. The modules called `*_worker` are started with `python -m`.
Those of PyTorch run in the interpreter that the environment variable NPLLM_TORCH_PYTHON names, which lacks what npllm
needs: they import PyTorch and the standard library only.
"""
