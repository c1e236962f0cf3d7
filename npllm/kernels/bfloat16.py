"""bfloat16: the upper half of a float32, so 8 bits of exponent and 8 of precision.

NumPy has no such type: here its bits are uint16. A product of two bfloat16 is exact in float32, which is why their
products are summed there, and why a matrix product needs nothing else of the format.

Source: Kalamkar et al., "A study of BFLOAT16 for deep learning training", 2019.
"""

import numpy as np
from numba import prange

from npllm.kernels.chunks import ELEMENTS, chunk_count
from npllm.kernels.jit import inlined, parallel, serial, summing

QUIET_NAN = np.uint32(0x7FC0)
HIGH_HALF = np.uint32(0xFFFF0000)


def round_into(rounded, x):
    """rounded = the nearest bfloat16 of x, and of two equally near the one with an even last bit.

    x: float32. rounded: uint16, of the same shape. Both C-contiguous.
    """
    kernel = round_each if x.size <= ELEMENTS else _round_all
    kernel(x.reshape(-1), rounded.reshape(-1))


def rounded(x, *, empty=np.empty):
    """x, float32, in bfloat16. The transpose of a C-contiguous matrix becomes one, everything else is C-contiguous."""
    if x.flags.f_contiguous and not x.flags.c_contiguous:
        return rounded(x.T, empty=empty).T
    result = empty(x.shape, np.uint16)
    round_into(result, x)
    return result


def widen(x):
    """The float32 that bfloat16 stands for; anything but uint16 is returned as it is."""
    return (x.astype(np.uint32) << np.uint32(16)).view(np.float32) if x.dtype == np.uint16 else x


@parallel
def _round_all(x, rounded):
    for c in prange(chunk_count(len(x), ELEMENTS)):
        round_each(x[c * ELEMENTS : (c + 1) * ELEMENTS], rounded[c * ELEMENTS : (c + 1) * ELEMENTS])


@serial
def round_each(x, rounded):
    for i in range(len(x)):
        rounded[i] = _bits(x[i])


@inlined
def _bits(x):
    """Half of the last place that stays, or a little less where that place is even, carries into it."""
    bits = np.float32(x).view(np.uint32)
    last_place = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = np.uint32(bits + np.uint32(0x7FFF) + last_place) >> np.uint32(16)
    return np.uint16(rounded if x == x else QUIET_NAN)


@summing
def dot_of_pairs(a, b):
    """The dot product of two rows of bfloat16, (n,) uint32 of two each."""
    total = np.float32(0.0)
    for i in range(len(a)):
        total += _low(a[i]) * _low(b[i]) + _high(a[i]) * _high(b[i])
    return total


@inlined
def _low(pair):
    return np.uint32(pair << np.uint32(16)).view(np.float32)


@inlined
def _high(pair):
    return np.uint32(pair & HIGH_HALF).view(np.float32)
