"""`benchmarks ladder`: the same operation in several versions, from slow to fast.

It shows how a kernel becomes fast. Each operation is one file, which holds the loop in
its simplest form. The versions, called rungs, are:

    Python loop           the loop, run by Python
    Numba loop            the same lines, compiled
    Numba parallel loop   the same lines, split between the cores
    NumPy                 whole arrays at a time; mostly `npllm.reference`
    npllm kernel          from `npllm.kernels`; its ideas are listed below
    PyTorch               the same operation in PyTorch, where that is installed

Read the files in this order, which is also the table's. Each adds one idea. Read the
loop first, then the kernel.

    file            the idea                                  the kernel's modules
    exponential     a function that can be vectorised         vector_math
    maximum         a reduction that can be vectorised        row_softmax, vector_math
    gelu            chunks of fixed size, for all cores       gelu, chunks
    softmax         two passes over a row in the cache        row_softmax
    layernorm       a chunk of rows for each iteration        norm_rows
    adamw           memory-bound: one pass, flat arrays       adam
    matmul          sums in registers, panels in the cache    gemm
    cross_entropy   logits in chunks of rows, never all       lm_head_loss
    attention       scores in blocks, never all               attention, attention_tiles

For each operation, `flops` and `n_bytes` say how much arithmetic and memory traffic it
needs at least. `roofline` draws both limits of the machine and every rung. `task`
defines the content of a file, `climb` times the rungs, `view` builds the tables.
"""
