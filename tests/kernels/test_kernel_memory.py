"""Kernels allocate with `empty` only, and never read what new memory holds."""

import tracemalloc

import numpy as np
import pytest
from kernel_cases import CASES, Draw, Sizes

import npllm.kernels

SIZES = Sizes(B=3, T=70, K=2, G=2, D=6, F=40, V=50)
LARGE = Sizes(B=8, T=64, K=2, G=2, D=16, F=200, V=300)  # most arrays are 128 KB and more
ALLOWED = 16 << 10  # bytes that a call may allocate for Python objects, views and partial sums


def filled_with(value):
    """An allocator that fills float arrays with `value` and integer arrays with 77."""

    def empty(shape, dtype):
        array = np.empty(shape, dtype)
        array.fill(value if array.dtype.kind == "f" else 77)
        return array

    return empty


@pytest.mark.parametrize("case", CASES)
def test_uninitialised_memory_never_shows(case):
    over_nan = CASES[case](npllm.kernels, SIZES, Draw(1, np.float32), filled_with(np.nan))
    over_ones = CASES[case](npllm.kernels, SIZES, Draw(1, np.float32), filled_with(1.0))
    for name, value in over_ones.items():
        assert np.all(np.isfinite(value)), name
        np.testing.assert_array_equal(over_nan[name], value, err_msg=name)


class Recycler:
    """An allocator that returns the same arrays again after `rewind`, like an arena."""

    def __init__(self):
        self.arrays, self.taken = [], 0

    def __call__(self, shape, dtype):
        if self.taken == len(self.arrays):
            self.arrays.append(np.empty(shape, dtype))
        array = self.arrays[self.taken]
        assert array.dtype == dtype
        assert array.size == np.prod(shape), "the second call asked for other arrays than the first"
        self.taken += 1
        return array

    def rewind(self):
        self.taken = 0


class Measured:
    """The operations of a package; `peaks` has the largest memory that each call took.

    peaks: name -> bytes allocated by Python at one time, in the last call.
    """

    def __init__(self, ops):
        self.ops, self.peaks = ops, {}

    def __getattr__(self, name):
        function = getattr(self.ops, name)

        def measured(*args, **kwargs):
            before, _ = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            result = function(*args, **kwargs)
            self.peaks[name] = tracemalloc.get_traced_memory()[1] - before
            return result

        return measured


@pytest.mark.parametrize("case", [name for name in CASES if name not in ("gradient_norm", "adam", "sgd")])
def test_empty_is_the_only_allocator(case):
    ops, empty = Measured(npllm.kernels), Recycler()
    tracemalloc.start()
    try:
        for _ in range(2):  # the first call compiles
            empty.rewind()
            CASES[case](ops, LARGE, Draw(1, np.float32), empty)
    finally:
        tracemalloc.stop()
    too_much = {name: peak for name, peak in ops.peaks.items() if peak > ALLOWED and name != "rotary_tables"}
    assert not too_much, "bytes"


@pytest.mark.parametrize("case", ["gradient_norm", "adam", "sgd"])
def test_flat_passes_allocate_nothing(case):
    ops = Measured(npllm.kernels)
    tracemalloc.start()
    try:
        for _ in range(2):
            CASES[case](ops, LARGE, Draw(1, np.float32), None)
    finally:
        tracemalloc.stop()
    assert max(ops.peaks.values()) <= ALLOWED
