"""What is timed in its own process: other libraries, and npllm beside them.

`process` is this process's side of the pipe, `serving` the worker's. The modules called
`*_worker` are started with `python -m`. Those of PyTorch run in the interpreter that
the environment variable NPLLM_PEERS_PYTHON names. It lacks npllm's dependencies, so
these modules import only PyTorch and the standard library.
"""
