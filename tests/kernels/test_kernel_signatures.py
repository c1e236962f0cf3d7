"""Either package of operations can stand in for the other."""

import inspect

import pytest

import npllm.kernels
import npllm.reference


def test_both_packages_offer_the_same_names():
    assert npllm.kernels.__all__ == npllm.reference.__all__


@pytest.mark.parametrize("name", npllm.reference.__all__)
def test_signatures_are_equal(name):
    ours, theirs = (inspect.signature(getattr(package, name)) for package in (npllm.kernels, npllm.reference))
    assert ours == theirs
