"""The kernels have the signatures of the book's operations and, beside them, an allocator."""

import inspect

import pytest

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


def test_the_adapter_offers_all_operations_and_drops_nothing_but_the_allocator():
    adapted = operations_of("reference")
    assert adapted.__all__ == npllm.reference.__all__
    assert adapted.DropoutKey is npllm.reference.DropoutKey
    assert adapted.gelu_forward(1.0, empty=None) == npllm.reference.gelu_forward(1.0)
    with pytest.raises(TypeError, match="emtpy"):
        adapted.gelu_forward(1.0, emtpy=None)
