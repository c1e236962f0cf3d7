"""Copies of blocks of A and B in the order in which the micro-kernel reads them.

A panel holds as many rows of A, or columns of B, as a tile has. The micro-kernel reads
it from its first element to its last, so it never waits, and a transposed matrix costs
no more than a plain one. Beyond the edge of the matrix a panel is filled with zeros.

The rows of a block are often far apart, in memory pages of their own, and the hardware
prefetches only what is near. The copy therefore prefetches rows some time before it
needs them.
"""

from npllm.kernels.gemm.instructions import (
    copy_register,
    copy_tile_height,
    copy_tile_width,
    prefetch,
    transpose_square,
)
from npllm.kernels.gemm.tile import TILE_ROWS, register_lanes, tile_columns, whole_tiles
from npllm.kernels.jit import part

ROWS_AHEAD = 16  # how far ahead the copy prefetches


@part
def pack_rows(matrix, start, step, depth_step, count, depth, panels, panels_start):
    """Copy `count` rows of A into panels, one after the other.

    matrix, panels: flat; A[i, k] is matrix[start + i step + k depth_step]. Where k is
    the fast index, a panel is a copy of the rows, (TILE_ROWS, depth); otherwise it is
    their transpose, (depth, TILE_ROWS).
    """
    whole = count - count % TILE_ROWS
    if depth_step == 1:
        for i in range(count):
            copy_row(matrix, start + i * step, panels, panels_start + i * depth, depth)
        end = panels_start + whole_tiles(count) * depth
        panels[panels_start + count * depth : end] = panels.dtype.type(0.0)
        return
    for k in range(depth):
        source, target = start + k * depth_step, panels_start + k * TILE_ROWS
        for i in range(0, whole, TILE_ROWS):
            prefetch(matrix, source + i + ROWS_AHEAD * depth_step)
            copy_tile_height(matrix, source + i, panels, target + i * depth)
    if whole < count:
        source, target = start + whole * step, panels_start + whole * depth
        _pack_edge(matrix, source, step, depth_step, count - whole, 0, depth, panels, target, TILE_ROWS)


@part
def copy_row(matrix, source, panels, target, depth):
    """Copy `depth` contiguous elements."""
    lanes = register_lanes(matrix.itemsize)
    whole = depth - depth % lanes
    for k in range(0, whole, lanes):
        copy_register(matrix, source + k, panels, target + k)
    for k in range(whole, depth):
        panels[target + k] = matrix[source + k]


@part
def pack_columns(matrix, start, step, depth_step, count, depth, panels, panels_start):
    """Copy `count` columns of B into panels, one after the other.

    A panel is (depth, columns of a tile). matrix, panels: flat; B[k, j] is matrix[start
    + j step + k depth_step].
    """
    columns = tile_columns(matrix.itemsize)
    whole = count - count % columns
    if step == 1:
        for k in range(depth):
            for j in range(0, whole, columns):
                source = start + k * depth_step + j
                prefetch(matrix, source + ROWS_AHEAD * depth_step)
                target = panels_start + j * depth + k * columns
                copy_tile_width(matrix, source, panels, target)
    else:
        for j in range(0, whole, columns):
            _pack_transposed(matrix, start + j * step, step, depth, panels, panels_start + j * depth)
    if whole < count:
        source, target = start + whole * step, panels_start + whole * depth
        _pack_edge(matrix, source, step, depth_step, count - whole, 0, depth, panels, target, columns)


@part
def _pack_transposed(matrix, start, step, depth, panel, panel_start):
    """Copy a panel of B where k is the fast index."""
    lanes, columns = register_lanes(matrix.itemsize), tile_columns(matrix.itemsize)
    whole = depth - depth % lanes
    for k in range(0, whole, lanes):
        for j in range(0, columns, lanes):
            source, target = start + j * step + k, panel_start + k * columns + j
            transpose_square(matrix, source, step, panel, target, columns)
    _pack_edge(matrix, start, step, 1, columns, whole, depth, panel, panel_start, columns)


@part
def _pack_edge(matrix, start, step, depth_step, count, first, depth, panel, panel_start, width):
    """Copy the rows first ... depth - 1 of a panel, (depth, width).

    `count` of its columns are inside the matrix; the others become zero.
    """
    for k in range(first, depth):
        for i in range(count):
            panel[panel_start + k * width + i] = matrix[start + i * step + k * depth_step]
        for i in range(count, width):
            panel[panel_start + k * width + i] = panel.dtype.type(0.0)
