"""The operations of both backends, with one calling convention.

A kernel takes the memory of its results from an allocator, `empty`; the model gives it
an arena. The operations of `npllm.reference` have no allocator: NumPy allocates their
results.
"""

from functools import wraps
from importlib import import_module
from typing import Any

BACKENDS = ("kernels", "reference")


def operations_of(backend: str) -> Any:
    """Return the operations of "kernels" or "reference".

    All that return arrays accept `empty=`.
    """
    package = import_module(f"npllm.{backend}")
    return package if backend == "kernels" else IgnoringAllocators(package)


class IgnoringAllocators:
    """A package of operations that accept allocators and ignore them."""

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
