"""bfloat16: the upper half of a float32, with 8 bits of exponent and 8 of precision.

NumPy has no such type, so its bits are stored as uint16. A product of two bfloat16 is
exact in float32, and products are summed in float32. A matrix product needs nothing
else of the format.

Source: Kalamkar et al., "A study of BFLOAT16 for deep learning training", 2019.
"""

import numpy as np
from numba import prange

from npllm.kernels.chunks import ELEMENTS, chunk_count
from npllm.kernels.jit import inlined, parallel, serial, summing

QUIET_NAN = np.uint32(0x7FC0)
HIGH_HALF = np.uint32(0xFFFF0000)


def round_into(rounded, x):
    """rounded = the bfloat16 nearest to x.

    Of two equally near, it is the one with an even last bit. x: float32. rounded:
    uint16, of the same shape. Both C-contiguous.
    """
    kernel = round_each if x.size <= ELEMENTS else _round_all
    kernel(x.reshape(-1), rounded.reshape(-1))


def rounded(x, *, empty=np.empty):
    """Return x, float32, in bfloat16 (uint16).

    The result is C-contiguous, unless x is the transpose of a C-contiguous matrix: then
    the result is such a transpose too.
    """
    if x.flags.f_contiguous and not x.flags.c_contiguous:
        return rounded(x.T, empty=empty).T
    result = empty(x.shape, np.uint16)
    round_into(result, x)
    return result


def widen(x):
    """Return bfloat16 (uint16) as float32, and any other array as it is."""
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
    """Return the bfloat16 of a float32 scalar.

    The sum carries into the last kept bit where the rest is above one half, or is one
    half and that bit is odd.
    """
    bits = np.float32(x).view(np.uint32)
    last_place = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = np.uint32(bits + np.uint32(0x7FFF) + last_place) >> np.uint32(16)
    return np.uint16(rounded if x == x else QUIET_NAN)


@summing
def dot_of_pairs(a, b):
    """Return the dot product of two rows of bfloat16.

    a, b: (n,) uint32, each of which holds two numbers.
    """
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
