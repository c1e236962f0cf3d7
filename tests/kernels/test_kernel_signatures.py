"""The kernels have the signatures of the book's operations, plus an allocator."""

import inspect

import numpy as np
import pytest
from kernel_cases import CASES, Draw, Sizes

import npllm.kernels
import npllm.reference
from npllm.model.backends import operations_of

ALLOCATORS = {"empty", "empty_y"}


def parameters(package, name):
    return inspect.signature(getattr(package, name)).parameters


def test_both_packages_offer_the_same_names():
    assert npllm.kernels.__all__ == npllm.reference.__all__


@pytest.mark.parametrize("name", npllm.reference.__all__)
def test_signatures_are_equal_but_for_the_allocator(name):
    ours, theirs = parameters(npllm.kernels, name), parameters(npllm.reference, name)
    assert not ALLOCATORS & set(theirs)
    assert [ours[own] for own in ours if own not in ALLOCATORS] == list(theirs.values())


class NotingCalls:
    """The operations of the reference; `called` has the names that were asked for."""

    def __init__(self):
        self.called = set()

    def __getattr__(self, name):
        self.called.add(name)
        return getattr(operations_of("reference"), name)


def test_every_operation_has_a_case():
    """An operation without a case is not compared with the reference by any test."""
    ops = NotingCalls()
    for case in CASES.values():
        case(ops, Sizes(), Draw(0, np.float64), np.empty)
    assert set(npllm.reference.__all__) - ops.called == {"DropoutKey"}


def test_the_adapter_offers_all_operations_and_drops_nothing_but_the_allocator():
    adapted = operations_of("reference")
    assert adapted.__all__ == npllm.reference.__all__
    assert adapted.DropoutKey is npllm.reference.DropoutKey
    assert adapted.gelu_forward(1.0, empty=None) == npllm.reference.gelu_forward(1.0)
    with pytest.raises(TypeError, match="emtpy"):
        adapted.gelu_forward(1.0, emtpy=None)
