"""The part of the product that stays in registers while the depth is summed, by what the CPU has.

A tile has `rows` rows of `vectors` registers. For each k it takes the loads of `vectors` registers of B and of `rows`
elements of A, and rows · vectors multiplications: so the larger the tile, the fewer loads for each multiplication. It
also needs 8 or more sums, because an FMA takes 4 cycles and two can start in each. So it should fill the register file,
but for the registers of B and one of A.

Source: Van Zee & van de Geijn, "BLIS: a framework for rapidly instantiating BLAS functionality", 2015.
"""

from typing import NamedTuple

from llvmlite.binding import get_host_cpu_features
from numba.extending import register_jitable


class Tile(NamedTuple):
    """Rows, registers in a row, and the size of a register."""

    rows: int
    vectors: int
    register_bytes: int


AVX512 = Tile(12, 2, register_bytes=64)  # 24 of 32 registers hold sums
AVX2 = Tile(6, 2, register_bytes=32)  # 12 of 16
NEON = Tile(8, 3, register_bytes=16)  # 24 of 32
PORTABLE = Tile(4, 2, register_bytes=16)  # 8 of 16


def best_tile(features: dict[str, bool]) -> Tile:
    """The tile for a CPU with these features, by LLVM's names."""
    for name, tile in {"avx512f": AVX512, "fma": AVX2, "neon": NEON}.items():
        if features.get(name, False):
            return tile
    return PORTABLE


TILE = best_tile(get_host_cpu_features())
TILE_ROWS = TILE.rows
HAS_BFLOAT16_DOT = TILE is AVX512 and get_host_cpu_features().get("avx512bf16", False)


@register_jitable
def register_lanes(itemsize: int) -> int:
    """Elements in a register."""
    return TILE.register_bytes // itemsize


@register_jitable
def tile_columns(itemsize: int) -> int:
    """Elements in a row of the tile."""
    return TILE.vectors * register_lanes(itemsize)


@register_jitable
def whole_tiles(n: int) -> int:
    """The number of rows in the tiles that n rows need."""
    return (n + TILE_ROWS - 1) // TILE_ROWS * TILE_ROWS


@register_jitable
def factors_per_lane(itemsize: int) -> int:
    """How many k a lane of a register takes at once: of bfloat16 two, side by side in its 32 bits; else one."""
    return 2 if itemsize == 2 else 1


@register_jitable
def whole_lanes(depth: int, itemsize: int) -> int:
    """The number of k in the lanes that a depth needs."""
    step = factors_per_lane(itemsize)
    return (depth + step - 1) // step * step
