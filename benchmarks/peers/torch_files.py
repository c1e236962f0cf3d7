"""Files of numbers, through which npllm and PyTorch exchange arrays."""

import os

import torch


def read_file(path, dtype):
    """Return the numbers of a file, (n,), mapped and not copied."""
    return torch.from_file(path, shared=False, size=os.path.getsize(path) // dtype.itemsize, dtype=dtype)


def write_file(path, tensor):
    """Write the numbers of a tensor to a file, in order."""
    torch.from_file(path, shared=True, size=tensor.numel(), dtype=tensor.dtype).copy_(tensor.flatten())
