"""The matrix product against NumPy's, for every layout that a layer uses."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npllm.kernels.bfloat16 import rounded, widen
from npllm.kernels.gemm import matmul, set_gemm
from npllm.kernels.gemm.driver import BLOCK_COLUMNS, BLOCK_ROWS, block_depth
from npllm.kernels.gemm.tile import AVX2, AVX512, NEON, PORTABLE, TILE_ROWS, best_tile, tile_columns
from npllm.reference import gelu_forward

TOLERANCE = {np.float32: 4e-7, np.float64: 1e-15}  # a few roundings, times the square root of the depth
# The sizes lie around the edges of a tile, a block and a thread's part.
SIZES = st.one_of(st.integers(1, 40), st.sampled_from([BLOCK_COLUMNS - 1, BLOCK_COLUMNS + 1, block_depth(4) + 5]))
SEEDS = st.integers(0, 9)
both_dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def normal(rng, *shape, dtype, transposed=False):
    """A C-contiguous matrix, or the transpose of one."""
    array = rng.normal(size=shape[::-1] if transposed else shape).astype(dtype)
    return array.T if transposed else array


@both_dtypes
@given(SIZES, SIZES, SIZES, st.booleans(), st.booleans(), st.sampled_from([None, "out", "other"]), st.booleans(), SEEDS)
@settings(max_examples=60, deadline=None)
def test_equals_numpy(dtype, M, K, N, transpose_a, transpose_b, added, with_bias, seed):
    rng = np.random.default_rng(seed)
    a = normal(rng, M, K, dtype=dtype, transposed=transpose_a)
    b = normal(rng, K, N, dtype=dtype, transposed=transpose_b)
    out, other, bias = (normal(rng, *shape, dtype=dtype) for shape in ((M, N), (M, N), (1, N)))
    activated = np.full_like(out, np.nan)
    addend = {None: None, "out": out, "other": other}[added]
    expected = a.astype(np.float64) @ b.astype(np.float64) + bias * with_bias
    expected += 0.0 if addend is None else addend
    result = matmul(a, b, out, addend=addend, bias=bias[0] if with_bias else None, activated=activated)
    assert result is out
    np.testing.assert_allclose(out, expected, rtol=0, atol=TOLERANCE[dtype] * (4 + 4 * K**0.5) * 4)
    np.testing.assert_allclose(activated, gelu_forward(out.astype(np.float64)), rtol=1e-6, atol=1e-6)


@given(SIZES, SIZES, SIZES, st.booleans(), st.booleans(), st.booleans(), SEEDS)
@settings(max_examples=60, deadline=None)
def test_bfloat16_is_multiplied_exactly_and_summed_in_float32(M, K, N, transpose_a, transpose_b, added, seed):
    rng = np.random.default_rng(seed)
    a = rounded(normal(rng, M, K, dtype=np.float32, transposed=transpose_a))
    b = rounded(normal(rng, K, N, dtype=np.float32, transposed=transpose_b))
    out, bias = (normal(rng, *shape, dtype=np.float32) for shape in ((M, N), (1, N)))
    expected = widen(a).astype(np.float64) @ widen(b) + (out + bias) * added
    epilogue = {"addend": out, "bias": bias[0], "activated": np.full_like(out, np.nan)} if added else {}
    matmul(a, b, out, **epilogue)
    np.testing.assert_allclose(out, expected, rtol=0, atol=TOLERANCE[np.float32] * (4 + 4 * K**0.5) * 4)
    if added:
        np.testing.assert_allclose(epilogue["activated"], gelu_forward(out.astype(np.float64)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("factors", [np.float32, "bfloat16"])
def test_blocks_of_rows_and_depth_join(factors):
    rng = np.random.default_rng(0)
    depth = 2 * block_depth(2 if factors == "bfloat16" else 4) + 3
    M, K, N = 2 * BLOCK_ROWS + TILE_ROWS + 1, depth, 2 * BLOCK_COLUMNS + tile_columns(4) + 1
    a, b = normal(rng, M, K, dtype=np.float32), normal(rng, K, N, dtype=np.float32)
    if factors == "bfloat16":
        a, b = rounded(a), rounded(b)
    expected = widen(a).astype(np.float64) @ widen(b).astype(np.float64)
    for left in (a, a.T.copy().T):
        for right in (b, b.T.copy().T):
            np.testing.assert_allclose(matmul(left, right, np.empty((M, N), np.float32)), expected, atol=2e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("rows", [23, 3])
@pytest.mark.parametrize("prepare", [np.asarray, rounded])
def test_what_is_not_finite_stays_in_its_row_and_column(bad, transposed, rows, prepare):
    rng = np.random.default_rng(0)
    a, b = normal(rng, rows, 19, dtype=np.float32, transposed=transposed), normal(rng, 19, 37, dtype=np.float32)
    a[2, 3] = bad

    def finite():
        return np.isfinite(matmul(prepare(a), prepare(b), np.empty((rows, 37), np.float32)))

    assert np.array_equal(~finite().all(axis=1), np.arange(rows) == 2)
    a[2, 3], b[18, 20] = 1.0, bad  # the last k, which bfloat16 does not multiply in a pair
    assert np.array_equal(~finite().all(axis=0), np.arange(37) == 20)


def test_the_caller_s_arrays_are_not_written_beyond_their_edge():
    memory = np.full(5 * 7 + 64, 9.0, np.float32)
    out = memory[16 : 16 + 35].reshape(5, 7)
    matmul(np.ones((5, 3), np.float32), np.ones((3, 7), np.float32), out)
    assert np.all(out == 3.0)
    assert np.all(memory[:16] == 9.0)
    assert np.all(memory[16 + 35 :] == 9.0)


def test_blas_gives_the_same_to_rounding():
    rng = np.random.default_rng(0)
    a, b, addend = (normal(rng, *shape, dtype=np.float64) for shape in ((9, 5), (5, 11), (9, 11)))
    results = {}
    try:
        for engine in ("npllm", "blas"):
            set_gemm(engine)
            out, activated = np.empty((9, 11)), np.empty((9, 11))
            matmul(a, b, out, addend=addend, bias=addend[0], activated=activated)
            results[engine] = out, activated
    finally:
        set_gemm("npllm")
    for ours, theirs in zip(*results.values(), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_an_unknown_engine_is_named():
    with pytest.raises(ValueError, match="The engine 'mkl' does not exist"):
        set_gemm("mkl")


def test_the_best_tile_that_the_cpu_has():
    assert best_tile({"avx512f": True, "fma": True}) is AVX512
    assert best_tile({"avx512f": False, "fma": True}) is AVX2
    assert best_tile({"neon": True}) is NEON
    assert best_tile({}) is PORTABLE


@pytest.mark.parametrize("tile", [AVX512, AVX2, NEON, PORTABLE])
def test_every_tile_fits_the_registers_and_the_blocks(tile):
    registers = {64: 32, 32: 16, 16: 32 if tile is NEON else 16}[tile.register_bytes]
    assert tile.rows * tile.vectors + tile.vectors + 1 <= registers
    for itemsize in (4, 8):
        lanes = tile.register_bytes // itemsize
        assert tile.rows * tile.vectors >= 8
        assert BLOCK_COLUMNS % (tile.vectors * lanes) == 0
