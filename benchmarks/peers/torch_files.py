"""Files of numbers, by which npllm and PyTorch exchange arrays."""

import os

import torch


def read_file(path, dtype):
    """The numbers of a file, 1-D, mapped and not copied."""
    return torch.from_file(path, shared=False, size=os.path.getsize(path) // dtype.itemsize, dtype=dtype)


def write_file(path, tensor):
    """The numbers of a tensor, in order."""
    torch.from_file(path, shared=True, size=tensor.numel(), dtype=tensor.dtype).copy_(tensor.flatten())
