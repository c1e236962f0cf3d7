"""The tile of C that stays in registers while the products are summed, for this CPU.

A tile has `rows` rows of `vectors` registers. For each k it loads `vectors` registers
of B and `rows` elements of A, and makes rows · vectors multiplications. A larger tile
therefore needs fewer loads per multiplication. It also needs at least 8 sums, because
an FMA takes 4 cycles and two can start in each cycle. The best tile fills the register
file, except for the registers of B and one of A.

Source: Van Zee & van de Geijn, "BLIS: a framework for rapidly instantiating BLAS
functionality", 2015.
"""

from typing import NamedTuple

from llvmlite.binding import get_host_cpu_features
from numba.extending import register_jitable


class Tile(NamedTuple):
    """Rows, registers per row, and the bytes of a register."""

    rows: int
    vectors: int
    register_bytes: int


AVX512 = Tile(12, 2, register_bytes=64)  # 24 of 32 registers hold sums
AVX2 = Tile(6, 2, register_bytes=32)  # 12 of 16
NEON = Tile(8, 3, register_bytes=16)  # 24 of 32
PORTABLE = Tile(4, 2, register_bytes=16)  # 8 of 16


def best_tile(features: dict[str, bool]) -> Tile:
    """Return the tile for a CPU with these features, named as LLVM names them."""
    for name, tile in {"avx512f": AVX512, "fma": AVX2, "neon": NEON}.items():
        if features.get(name, False):
            return tile
    return PORTABLE


TILE = best_tile(get_host_cpu_features())
TILE_ROWS = TILE.rows
HAS_BFLOAT16_DOT = TILE is AVX512 and get_host_cpu_features().get("avx512bf16", False)


@register_jitable
def register_lanes(itemsize: int) -> int:
    """Return the number of elements in a register."""
    return TILE.register_bytes // itemsize


@register_jitable
def tile_columns(itemsize: int) -> int:
    """Return the number of elements in a row of the tile."""
    return TILE.vectors * register_lanes(itemsize)


@register_jitable
def whole_tiles(n: int) -> int:
    """Return n rounded up to whole tiles of rows."""
    return (n + TILE_ROWS - 1) // TILE_ROWS * TILE_ROWS


@register_jitable
def factors_per_lane(itemsize: int) -> int:
    """Return how many k a lane of a register holds: two of bfloat16, otherwise one.

    Two bfloat16 lie side by side in the 32 bits of a lane.
    """
    return 2 if itemsize == 2 else 1


@register_jitable
def whole_lanes(depth: int, itemsize: int) -> int:
    """Return the depth rounded up to whole lanes, as a number of k."""
    step = factors_per_lane(itemsize)
    return (depth + step - 1) // step * step
