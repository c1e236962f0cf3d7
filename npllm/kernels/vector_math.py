"""exp, the logistic function, the maximum and the dot product, for vectorised loops.

Numba calls the C library for exp and tanh, one element at a time. These few lines of
multiplication and addition run on all lanes of a vector register at once. GELU, softmax
and SwiGLU spend most of their time here.

    e^x = 2^n e^r       n = round(x / log 2)       r = x - n log 2, |r| <= log(2) / 2

e^r is a polynomial; the product with 2^n is an addition to the bits of the exponent.
float64, which serves to check gradients, uses exp of the C library.

`python -m benchmarks ladder` on one core of an AMD EPYC with AVX2, float32: exp takes
0.53 ns per element, and 2.9 ns with the C library in the same loop. The maximum of a
row takes 0.13 ns per element, and 0.33 ns with comparisons.

Source: Cody & Waite, "Software manual for the elementary functions", 1980 (log 2 in two
parts); the coefficients are those of Moshier's Cephes library, 1988.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from npllm.kernels.jit import inlined, replacing, summing

LOG2_E = np.float32(1.4426950408889634)
LOG_2_HIGH = np.float32(0.693359375)  # 9 bits: its product with n is exact
LOG_2_LOW = np.float32(-2.12194440e-4)  # log 2 - LOG_2_HIGH
ROUNDER = np.float32(1.5 * 2**23)  # a sum with it has no bits for a fraction: it is rounded to an integer
MANTISSA_BITS = np.int32(23)
SMALLEST, LARGEST = np.float32(-87.33), np.float32(88.72283)  # of the x whose e^x is a normal and finite float32


def exp(x):
    """Return e^x of a scalar, in its dtype.

    It is at most 1.1 ulp off in float32; in float64 it is libm's result. It is infinity
    above the range, and NaN for NaN. In float32 it is 0 below x = -87.33, where the
    exact result would be subnormal (below 1.2e-38), because arithmetic with subnormal
    numbers is very slow on a CPU.
    """
    return np.exp(x)  # without Numba


@replacing(exp)
def _exp_by_type(x):
    return _exp_float32 if x == types.float32 else _exp_libm


def _exp_libm(x):
    return np.exp(x)


def _exp_float32(x):
    rounded = np.float32(x * LOG2_E + ROUNDER)
    n = rounded - ROUNDER
    r = x - n * LOG_2_HIGH - n * LOG_2_LOW
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = np.float32(p * r * r + r + np.float32(1.0))
    # The low bits of `rounded` are n. The shift drops its other bits. Everything is
    # int32, because int64 would halve the number of lanes.
    exponent = np.int32(rounded.view(np.int32) << MANTISSA_BITS)
    y = np.int32(p.view(np.int32) + exponent).view(np.float32)
    y = np.float32(0.0) if x < SMALLEST else y
    y = np.float32(np.inf) if x > LARGEST else y
    return y if x == x else x  # NaN


def larger(a, b):
    """Return the larger of two scalars, or NaN if either is NaN."""
    return a if a > b or a != a else b  # without Numba


@replacing(larger)
def _larger(a, b):
    return lambda a, b: _maximum(a, b)


@intrinsic
def _maximum(typing, a, b):
    """Emit LLVM's own instruction for the maximum.

    LLVM does not vectorise loops over a comparison, because NaN would be lost. On AMD's
    CPUs it may also write a masked store instead, which is many times slower.
    """

    def generate(context, builder, signature, arguments):
        real = context.get_value_type(a)
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(real, [real, real]), f"llvm.maximum.f{a.bitwidth}"
        )
        return builder.call(function, arguments)

    return a(a, a), generate


@inlined
def sigmoid(x):
    """Return 1 / (1 + e^-x) of a scalar, in x's dtype.

    In float32 it is at most 2.6 ulp off, and 0 below x = -88.72.
    """
    one = type(x)(1.0)
    return one / (one + exp(-x))


@summing
def dot(a, b):
    """Return the dot product of two rows."""
    total = a.dtype.type(0.0)
    for i in range(len(a)):
        total += a[i] * b[i]
    return total
