"""The matrix product in blocks that stay in the caches, split between the threads.

    for each block of rows of C                of this thread
        for each block of k                    A: (BLOCK_ROWS, block_depth), in L2
            for each block of columns of C     B: (block_depth, BLOCK_COLUMNS), in L2
                for each panel of B            (block_depth, columns of a tile), in L1
                    for each panel of A        micro-kernel

A thread owns whole rows or whole columns of C, and never a part of the sum over k.
Every element is summed over k in the same order, so the bits do not depend on the
number of threads.

Source: Goto & van de Geijn, "Anatomy of high-performance matrix multiplication", 2008.
"""

from typing import NamedTuple

import numpy as np
from numba import prange, uint16
from numba.extending import register_jitable

from npllm.kernels.chunks import chunk_count
from npllm.kernels.gelu import gelu_each
from npllm.kernels.gemm.instructions import address
from npllm.kernels.gemm.micro_kernel import ZEROS, multiply_tile
from npllm.kernels.gemm.packing import pack_columns, pack_rows
from npllm.kernels.gemm.packing_pairs import pack_column_pairs, pack_row_pairs
from npllm.kernels.gemm.tile import TILE_ROWS, factors_per_lane, tile_columns, whole_lanes
from npllm.kernels.jit import parallel, part, replacing

BLOCK_ROWS = 384 // TILE_ROWS * TILE_ROWS
BLOCK_DEPTH_BYTES = 1536  # 384 of float32
BLOCK_COLUMNS = 96  # a multiple of every tile's columns


class Matrix(NamedTuple):
    """A flat array: element [i, k] is data[i · row_step + k · column_step].

    One of the steps is 1.
    """

    data: np.ndarray
    row_step: int
    column_step: int


class Epilogue(NamedTuple):
    """What is added to the product, and the array for its GELU.

    An array without elements stands for none.
    """

    addend: np.ndarray  # (M, N)
    bias: np.ndarray  # (N,)
    activated: np.ndarray  # (M, N)


class Range(NamedTuple):
    """Rows or columns first ... end - 1."""

    first: int
    end: int


@register_jitable
def block_depth(itemsize: int) -> int:
    """Return the number of k in a block of A or B."""
    return BLOCK_DEPTH_BYTES // itemsize


def panel_elements(itemsize: int) -> int:
    """Return how many elements a thread packs: a block of A and a block of B."""
    return (BLOCK_ROWS + BLOCK_COLUMNS) * block_depth(itemsize)


def tile_elements(itemsize: int) -> int:
    """Return the number of elements in a tile of C."""
    return TILE_ROWS * tile_columns(itemsize)


def _by_type(pack, pack_pairs):
    """Return a function that packs with `pack`, or bfloat16 with `pack_pairs`."""

    def choose(matrix, start, step, depth_step, count, depth, panels, panels_start):
        chosen = pack_pairs if factors_per_lane(matrix.itemsize) == 2 else pack
        chosen(matrix, start, step, depth_step, count, depth, panels, panels_start)

    @replacing(choose, inline=False)
    def _(matrix, start, step, depth_step, count, depth, panels, panels_start):
        return pack_pairs.py_func if matrix.dtype == uint16 else pack.py_func

    return choose


pack_left = _by_type(pack_rows, pack_row_pairs)
pack_right = _by_type(pack_columns, pack_column_pairs)


@parallel
def multiply(
    a, a_row_step, a_column_step, b, b_row_step, b_column_step, depth, c, addend, bias, activated, panels, tiles
):
    """Compute c = a @ b + addend + bias, and activated = gelu(c).

    a, b: flat, with their steps as in `Matrix`; both have c's dtype, or both are
    bfloat16. depth: the number of k, at least 1. c: (M, N). addend, which may be c,
    bias, activated: as in `Epilogue`. Scratch: panels, (threads, panel_elements), of
    a's dtype; tiles, (threads, tile_elements), of c's dtype.
    """
    left, right = Matrix(a, a_row_step, a_column_step), Matrix(b, b_row_step, b_column_step)
    epilogue = Epilogue(addend, bias, activated)
    threads = len(panels)
    for t in prange(threads):
        thread = np.int64(t)
        rows, columns = _share(thread, threads, c.shape[0], c.shape[1], tile_columns(c.itemsize))
        multiply_part(left, right, depth, c, epilogue, rows, columns, panels[thread], tiles[thread])


@part
def multiply_part(a, b, depth, c, epilogue, rows, columns, panels, tile):
    """Compute the Ranges of rows and columns of C, with one thread."""
    for row in range(rows.first, rows.end, BLOCK_ROWS):
        block = Range(row, min(row + BLOCK_ROWS, rows.end))
        _multiply_rows(a, b, depth, c, epilogue, block, columns, panels, tile)


@part
def _share(thread, threads, M, N, width):
    """Return the Ranges of rows and columns of C that one thread computes.

    The threads share the rows or the columns, whichever makes more panels.
    """
    row_panels, column_panels = chunk_count(M, TILE_ROWS), chunk_count(N, width)
    if row_panels >= column_panels:
        first, end = row_panels * thread // threads, row_panels * (thread + 1) // threads
        return Range(first * TILE_ROWS, min(end * TILE_ROWS, M)), Range(0, N)
    first, end = column_panels * thread // threads, column_panels * (thread + 1) // threads
    return Range(0, M), Range(first * width, min(end * width, N))


@part
def _multiply_rows(a, b, depth, c, epilogue, rows, columns, panels, tile):
    """Compute a block of rows."""
    packed_b = BLOCK_ROWS * block_depth(panels.itemsize)
    height = rows.end - rows.first
    for k in range(0, depth, block_depth(panels.itemsize)):
        ks = Range(k, min(k + block_depth(panels.itemsize), depth))
        width = whole_lanes(ks.end - k, panels.itemsize)
        # Rows of A are read in place if k is the fast index and no lane is half empty.
        in_place = height - height % TILE_ROWS if a.column_step == 1 and width == ks.end - k else 0
        start = (rows.first + in_place) * a.row_step + k * a.column_step
        rows_left = height - in_place
        pack_left(a.data, start, a.row_step, a.column_step, rows_left, ks.end - k, panels, in_place * width)
        for column in range(columns.first, columns.end, BLOCK_COLUMNS):
            block = Range(column, min(column + BLOCK_COLUMNS, columns.end))
            start = k * b.row_step + column * b.column_step
            count = block.end - column
            pack_right(b.data, start, b.column_step, b.row_step, count, ks.end - k, panels, packed_b)
            _multiply_block(a, in_place, c, epilogue, rows, ks, block, panels, packed_b, tile)
        if ks.end == depth and epilogue.activated.size > 0:
            _activate(c, epilogue.activated, rows, columns)


@part
def _multiply_block(a, in_place, c, epilogue, rows, ks, columns, panels, packed_b, tile):
    """Multiply a packed block of B into its columns of C, tile by tile.

    A tile at the edge of C is computed in `tile` and copied from there.
    """
    factor, N, tile_width = panels.dtype.type(0), c.shape[1], tile_columns(c.itemsize)
    lane, width = factors_per_lane(panels.itemsize), whole_lanes(ks.end - ks.first, panels.itemsize)
    lanes = width // lane
    packed_row_step, lane_step = (width, lane) if a.column_step == 1 else (lane, lane * TILE_ROWS)
    zeros, edge = address(ZEROS, 0), address(tile, 0)
    with_addend, with_bias = ks.first > 0 or epilogue.addend.size > 0, ks.first == 0 and epilogue.bias.size > 0
    addend = address(c, 0) if ks.first > 0 else address(epilogue.addend, 0)
    for column in range(columns.first, columns.end, tile_width):
        b_panel = address(panels, packed_b + (column - columns.first) * width)
        column_end = min(column + tile_width, columns.end)
        is_whole = column_end - column == tile_width
        bias_tile = address(epilogue.bias, column) if with_bias and is_whole else zeros
        for row in range(rows.first, rows.end, TILE_ROWS):
            a_panel, row_step = address(panels, (row - rows.first) * width), packed_row_step
            if row - rows.first < in_place:
                a_panel, row_step = address(a.data, row * a.row_step + ks.first), a.row_step
            if is_whole and row + TILE_ROWS <= rows.end:
                c_tile, addend_tile, step = address(c, row * N + column), zeros, 0
                if with_addend:
                    addend_tile, step = addend + (row * N + column) * c.itemsize, N
                multiply_tile(
                    factor, a_panel, row_step, lane_step, b_panel, lanes, c_tile, N, addend_tile, step, bias_tile
                )
            else:
                multiply_tile(factor, a_panel, row_step, lane_step, b_panel, lanes, edge, tile_width, zeros, 0, zeros)
                row_end = min(row + TILE_ROWS, rows.end)
                _finish_edge(tile, tile_width, c, epilogue, ks.first == 0, row, row_end, column, column_end)


@part
def _finish_edge(tile, tile_width, c, epilogue, is_first, row, row_end, column, column_end):
    """Copy the part of a tile that is inside C, and add the bias and the addend."""
    addend = epilogue.addend if is_first else c
    for i in range(row, row_end):
        for j in range(column, column_end):
            c_ij = tile[(i - row) * tile_width + j - column]
            if addend.size > 0:
                c_ij += addend[i, j]
            if is_first and epilogue.bias.size > 0:
                c_ij += epilogue.bias[j]
            c[i, j] = c_ij


@part
def _activate(c, activated, rows, columns):
    """Fill a block of rows of activated with the GELU of C.

    The block is still in the L2 cache. Its long rows make longer loops than the rows of
    a tile would.
    """
    for i in range(rows.first, rows.end):
        gelu_each(c[i, columns.first : columns.end], activated[i, columns.first : columns.end])
