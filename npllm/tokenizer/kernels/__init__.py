"""The tokenizer's loops in Numba: for large texts.

The plain Python in `npllm.tokenizer` defines every result; the kernels give the same
ids and the same merges, and tests compare the two. Text is UTF-8, (bytes,) uint8.

    scan          where a piece of text ends, for each split that has a name
    piece_table   a hash table from pieces to numbers
    encoding      text to ids
    learning      counts of pieces, and the merges learnt from them

No kernel here has constants of modules outside this folder: its sources, and those of
`npllm.kernels`, name the folder of the compiled code (npllm/kernels/compiled_cache.py).
"""
