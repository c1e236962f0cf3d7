"""exp, sigmoid and maximum of the kernels against NumPy, over the range of float32."""

import numpy as np
import pytest

from npllm.kernels.jit import serial
from npllm.kernels.vector_math import exp, larger, sigmoid

SMALLEST_NORMAL = np.finfo(np.float32).tiny  # 1.2e-38
EVERYWHERE = np.concatenate([
    np.linspace(-110, 100, 2_000_001),
    np.linspace(-87.34, -87.32, 100_001),
    np.linspace(88.70, 88.73, 100_001),
    np.geomspace(1e-30, 1e-2, 100_001),
    -np.geomspace(1e-30, 1e-2, 100_001),
]).astype(np.float32)  # fmt: skip
BELOW = np.less(EVERYWHERE, np.float32(-87.33))  # where exp is 0

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in cast")


@serial
def exp_of(x, y):
    for i in range(len(x)):
        y[i] = exp(x[i])


@serial
def sigmoid_of(x, y):
    for i in range(len(x)):
        y[i] = sigmoid(x[i])


def of(kernel, x):
    y = np.empty_like(x)
    kernel(x, y)
    return y


def ulps(computed, exact):
    """The distance from exact float64 results, in float32 units in the last place."""
    return np.abs(computed - exact) / np.spacing(np.abs(exact).astype(np.float32))


def test_exp_is_within_1_1_ulp():
    exact = np.exp(EVERYWHERE.astype(np.float64))
    normal = (~BELOW) & (exact <= np.finfo(np.float32).max)
    assert ulps(of(exp_of, EVERYWHERE), exact)[normal].max() < 1.1


def test_exp_underflows_to_zero_and_overflows_to_infinity():
    exact = np.exp(EVERYWHERE.astype(np.float64))
    computed = of(exp_of, EVERYWHERE)
    assert np.all(computed[BELOW] == 0)
    assert exact[computed == 0].max() < 1.01 * SMALLEST_NORMAL
    np.testing.assert_array_equal(np.isinf(computed), np.isinf(exact.astype(np.float32)))


def test_sigmoid_is_within_2_6_ulp():
    exact = 1 / (1 + np.exp(-EVERYWHERE.astype(np.float64)))
    computed = of(sigmoid_of, EVERYWHERE)
    normal = exact > SMALLEST_NORMAL
    assert ulps(computed, exact)[normal].max() < 2.6
    assert np.abs(computed - exact)[~normal].max() < SMALLEST_NORMAL


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_special_values(dtype):
    x = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 3e38, -3e38], dtype)
    np.testing.assert_array_equal(of(exp_of, x), np.array([np.nan, np.inf, 0, 1, 1, np.inf, 0], dtype))
    np.testing.assert_array_equal(of(sigmoid_of, x), np.array([np.nan, 1, 0, 0.5, 0.5, 1, 0], dtype))


def test_every_nan_stays_one():
    """exp shifts bits into the exponent, where some payloads of NaN could get lost."""
    x = np.arange(0x7FC00000, 0x7FC00200, dtype=np.uint32).view(np.float32)
    assert np.isnan(of(exp_of, x)).all()


def test_float64_is_exact():
    x = np.linspace(-700, 700, 10_001)
    np.testing.assert_allclose(of(exp_of, x), np.exp(x), rtol=1e-15)


@serial
def larger_of(a, b, y):
    for i in range(len(a)):
        y[i] = larger(a[i], b[i])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("compiled", [True, False])
def test_larger_is_the_maximum_and_nan_where_either_is(dtype, compiled):
    values = np.array([-np.inf, -1.5, 0.0, 2.0, np.inf, np.nan] * 3, dtype)  # more than fit into a register
    a, b = (array.ravel() for array in np.meshgrid(values, values))
    y = np.empty_like(a)
    if compiled:
        larger_of(a, b, y)
    else:
        y[:] = [larger(*pair) for pair in zip(a, b, strict=True)]
    np.testing.assert_array_equal(y, np.maximum(a, b))
