"""Rounding to bfloat16, and the operations that take bfloat16 weights."""

from fractions import Fraction

import numpy as np
import pytest

from npllm import kernels, reference
from npllm.kernels.bfloat16 import rounded, widen
from npllm.kernels.rounded_transpose import round_transposed

NAN, INFINITY = 0x7FC0, 0x7F80


def test_every_bfloat16_stays_what_it_is():
    bits = np.arange(1 << 16, dtype=np.uint16)
    is_nan = np.isnan(widen(bits))
    np.testing.assert_array_equal(rounded(widen(bits))[~is_nan], bits[~is_nan])
    assert np.all(rounded(widen(bits))[is_nan] == NAN)


def test_rounds_to_the_nearest_and_halves_to_even():
    rng = np.random.default_rng(0)
    bits = rng.integers(0, INFINITY - 1, 5000, dtype=np.uint32) << 16
    bits = np.concatenate([bits | low for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)])
    x = bits.astype(np.uint32).view(np.float32)
    below, result = (bits >> 16).astype(np.uint16), rounded(x)
    lower, upper = widen(below), widen((below + 1).astype(np.uint16))
    for value, low, high, is_even, got in zip(x, lower, upper, below % 2 == 0, widen(result), strict=True):
        if not np.isfinite(high):
            continue
        to_low, to_high = Fraction(float(value)) - Fraction(float(low)), Fraction(float(high)) - Fraction(float(value))
        assert got == (low if to_low < to_high or (to_low == to_high and is_even) else high)
    np.testing.assert_array_equal(rounded(-x), result | 0x8000)


def test_what_is_too_large_becomes_infinite():
    x = np.array([np.finfo(np.float32).max, -np.finfo(np.float32).max, np.inf, np.nan], np.float32)
    assert rounded(x).tolist() == [INFINITY, INFINITY | 0x8000, INFINITY, NAN]


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (64, 96), (300, 33), (257, 48), (9, 20_000)])
def test_the_transpose_is_rounded_alike(shape):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    transposed = np.empty(shape[::-1], np.uint16)
    round_transposed(transposed, x)
    np.testing.assert_array_equal(transposed.T, rounded(x))


def normal(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


def round_trip(x):
    return widen(rounded(x.astype(np.float32)))


@pytest.mark.parametrize("rows", [1, 3, 70])
@pytest.mark.parametrize("epilogue", ["none", "gelu", "residual"])
def test_linear_is_the_reference_of_what_is_rounded(rows, epilogue):
    """Each product is that of its rounded factors; the backward rounds dz first."""
    rng = np.random.default_rng(0)
    x, weight, bias = normal(rng, rows, 24), normal(rng, 24, 40), normal(rng, 40)
    residual, dy = (normal(rng, rows, 40) for _ in range(2))
    options = {"epilogue": epilogue, "residual": residual if epilogue == "residual" else None}
    half_weight = rounded(weight.T.copy()).T
    y, z = kernels.linear_forward(x, half_weight, bias, **options)
    expected, expected_z = reference.linear_forward(round_trip(x), widen(half_weight), bias, **options)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)

    dweight, dbias = normal(rng, 24, 40), normal(rng, 40)
    expected_dweight, expected_dbias = dweight.astype(np.float64), dbias.astype(np.float64)
    dx = kernels.linear_backward(dy, x, half_weight, dweight, dbias, pre_activation=z)
    dz = dy.astype(np.float64)
    if epilogue == "gelu":
        dz = reference.gelu_backward(dz, expected_z.astype(np.float64))
    expected_dbias += dz.sum(axis=0)
    expected_dweight += round_trip(x).astype(np.float64).T @ round_trip(dz)
    # A dz near the midpoint of two bfloat16 may be rounded to either: the
    # difference is one unit in the last place of one factor.
    np.testing.assert_allclose(dbias, expected_dbias, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dweight, expected_dweight, rtol=1e-5, atol=2e-2 if epilogue == "gelu" else 1e-5)
    np.testing.assert_allclose(
        dx, round_trip(dz) @ widen(half_weight).T, rtol=1e-5, atol=2e-2 if epilogue == "gelu" else 1e-4
    )


def test_the_head_s_loss_is_that_of_rounded_factors():
    rng = np.random.default_rng(0)
    x, weight, targets = normal(rng, 50, 16), normal(rng, 31, 16), rng.integers(-1, 31, 50)
    half = rounded(weight)
    dweight, expected_dweight = np.zeros_like(weight), np.zeros_like(weight)
    loss, dx = kernels.lm_head_loss_and_grad(x, half, targets, 40, dweight)
    expected, expected_dx = reference.lm_head_loss_and_grad(round_trip(x), widen(half), targets, 40, expected_dweight)
    assert loss == pytest.approx(expected, rel=1e-6)
    # The gradient of the logits is at most 1/40, and is rounded to 8 bits.
    np.testing.assert_allclose(dx, expected_dx, atol=1e-3)
    np.testing.assert_allclose(dweight, expected_dweight, atol=1e-3)

    nll, cache = kernels.lm_head_loss_forward(x, half, targets)
    assert nll.sum() / 40 == pytest.approx(expected, rel=1e-6)
    again = np.zeros_like(weight)
    dx_again = kernels.lm_head_loss_backward(np.full(50, 1 / 40, np.float32), cache, half, again)
    np.testing.assert_allclose(dx_again, expected_dx, atol=1e-3)
    np.testing.assert_allclose(again, expected_dweight, atol=1e-3)


def test_rounding_keeps_the_order_of_memory():
    x = normal(np.random.default_rng(0), 6, 4)
    for matrix in (x, x.T, x[::2, ::2]):
        np.testing.assert_array_equal(widen(rounded(matrix)), round_trip(matrix.copy()))
    assert rounded(x.T).T.flags.c_contiguous
