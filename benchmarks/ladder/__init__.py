"""`benchmarks ladder`: the same operation from a loop in Python up to the kernel that ships.

This is the place to learn how a kernel becomes fast. Each operation is one file, which
holds the loop as one would write it at first. The rungs of its ladder:

    Python loop           the loop, run by Python
    Numba loop            the same lines, compiled
    Numba parallel loop   the same lines, split between the cores
    NumPy                 whole arrays at a time; mostly `npllm.reference`
    npllm kernel          from `npllm.kernels`; what it adds is listed below
    PyTorch               the same operation in PyTorch, where that is installed

Read the files in this order, which is that of the table too. Each adds one idea. Read the
loop first, then the kernel beside it.

    file            the idea                                            the kernel
    exponential     a function that the compiler can vectorise          vector_math.py
    maximum         a reduction that it can vectorise                   row_softmax.py, vector_math.py
    gelu            chunks of fixed size, split between the cores       gelu.py, chunks.py
    softmax         two passes over a row while it is in the cache      row_softmax.py
    layernorm       a chunk of rows for each iteration                  norm_rows.py
    adamw           memory is the limit: one pass over flat arrays      adam.py
    matmul          a tile of sums in registers, panels in the cache    gemm/
    cross_entropy   logits in chunks of rows, never all of them         lm_head_loss.py
    attention       scores in blocks, never all of them                 attention.py, attention_tiles.py

For each operation, `flops` and `n_bytes` say how much arithmetic and memory traffic it
needs at least. `roofline` draws both limits of the machine, and every rung under them.
`task` says what a file holds, `climb` times the rungs, `view` prints the table.
"""
