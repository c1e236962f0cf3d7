"""The matrix product with the tile of every kind of CPU.

LLVM emulates the registers that this CPU does not have.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Numba has asked for the CPU's features before they are replaced, so only the choice of
# the tile sees the claimed ones.
PROGRAM = """
import sys
import llvmlite.binding, numba, numpy as np
numba.njit(lambda: 0)()
llvmlite.binding.get_host_cpu_features = lambda: dict.fromkeys(sys.argv[1].split(), True)
from npllm.kernels.bfloat16 import rounded, widen
from npllm.kernels.gemm import matmul
from npllm.kernels.gemm.tile import TILE

rng = np.random.default_rng(0)
for M, K, N in ((5, 3, 7), (29, 401, 101)):
    a, b, addend = (rng.normal(size=shape).astype(np.float32) for shape in ((M, K), (K, N), (M, N)))
    expected = a.astype(np.float64) @ b + addend + addend[0]
    for left in (a, a.T.copy().T):
        for right in (b, b.T.copy().T):
            result = matmul(left, right, np.empty((M, N), np.float32), addend=addend, bias=addend[0])
            np.testing.assert_allclose(result, expected, atol=1e-4)
    half_a, half_b = rounded(a), rounded(b)
    expected = widen(half_a).astype(np.float64) @ widen(half_b)
    for left in (half_a, half_a.T.copy().T):
        for right in (half_b, half_b.T.copy().T):
            np.testing.assert_allclose(matmul(left, right, np.empty((M, N), np.float32)), expected, atol=1e-4)
print(TILE)
"""


TILES = {
    "avx512f fma": "Tile(rows=12, vectors=2, register_bytes=64)",
    "fma": "Tile(rows=6, vectors=2, register_bytes=32)",
    "neon": "Tile(rows=8, vectors=3, register_bytes=16)",
    "": "Tile(rows=4, vectors=2, register_bytes=16)",
}


# Each parameter compiles the product anew, which takes most of the time. All other
# tests use the tile of this machine.
@pytest.mark.long
@pytest.mark.parametrize("features", TILES)
def test_every_tile_multiplies_rightly(features, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": str(tmp_path)}
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, features], env=environment, capture_output=True, text=True, check=False
    )
    assert process.stdout.strip() == TILES[features], process.stderr


# Code for a CPU that this machine need not have: it is compiled, and not run.
FOR_ANOTHER_CPU = """
import llvmlite.binding, numba
numba.njit(lambda: 0)()
llvmlite.binding.get_host_cpu_features = lambda: dict.fromkeys(["avx512f", "fma", "avx512bf16"], True)
from npllm.kernels.gemm.micro_kernel import multiply_tile

@numba.njit
def tile(factor, a, b, c):
    multiply_tile(factor, a, 2, 24, b, 100, c, 32, c, 0, c)

tile.compile((numba.uint16, numba.intp, numba.intp, numba.intp))
[code] = tile.inspect_asm().values()
print(code.count("vdpbf16ps"), code.count("vfmadd"))
"""


def test_a_cpu_that_multiplies_bfloat16_does():
    cpu = {"NUMBA_CPU_NAME": "sapphirerapids", "NUMBA_CPU_FEATURES": "+avx512f,+avx512bw,+avx512vl,+avx512bf16"}
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | cpu
    process = subprocess.run(
        [sys.executable, "-c", FOR_ANOTHER_CPU], env=environment, capture_output=True, text=True, check=False
    )
    assert process.stdout == "24 0\n", process.stderr  # one instruction for each register of sums
