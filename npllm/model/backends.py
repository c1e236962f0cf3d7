"""The operations of either backend, with one calling convention.

A kernel takes its results from an allocator, `empty`, and the model gives it an arena.
The operations of `npllm.reference` know no allocator: NumPy makes their results.
"""

from functools import wraps
from importlib import import_module
from typing import Any

BACKENDS = ("kernels", "reference")


def operations_of(backend: str) -> Any:
    """The operations of "kernels" or "reference"; what returns an array takes `empty=`."""
    package = import_module(f"npllm.{backend}")
    return package if backend == "kernels" else IgnoringAllocators(package)


class IgnoringAllocators:
    """A package of operations that leave out the allocators that they are given."""

    def __init__(self, package):
        self.__all__ = package.__all__
        for name in package.__all__:
            operation = getattr(package, name)
            setattr(self, name, operation if isinstance(operation, type) else _ignoring(operation))


def _ignoring(operation):
    @wraps(operation)
    def called(*arguments, empty=None, empty_y=None, **options):
        return operation(*arguments, **options)

    return called
