"""`packing` for bfloat16: the same panels, with two k in each lane.

The even k is in the low half of a lane. matrix, panels: flat, uint16. Where k is the
fast index, two neighbours in memory already make a lane. A last k without a partner is
paired with zero. Beyond the edge of the matrix a panel is filled with zeros.
"""

import numpy as np

from npllm.kernels.gemm.instructions import prefetch, transpose_square
from npllm.kernels.gemm.packing import ROWS_AHEAD, copy_row
from npllm.kernels.gemm.tile import TILE_ROWS, register_lanes, tile_columns, whole_lanes, whole_tiles
from npllm.kernels.jit import part

LANE = 4  # bytes


@part
def pack_row_pairs(matrix, start, step, depth_step, count, depth, panels, panels_start):
    """Copy rows of A into panels; arguments as in `packing.pack_rows`."""
    if depth_step > 1:
        _pack_pairs(matrix, start, step, depth_step, count, depth, panels, panels_start, TILE_ROWS)
        return
    width = whole_lanes(depth, matrix.itemsize)
    for i in range(count):
        target = panels_start + i * width
        copy_row(matrix, start + i * step, panels, target, depth)
        panels[target + depth : target + width] = np.uint16(0)
    panels[panels_start + count * width : panels_start + whole_tiles(count) * width] = np.uint16(0)


@part
def pack_column_pairs(matrix, start, step, depth_step, count, depth, panels, panels_start):
    """Copy columns of B into panels; arguments as in `packing.pack_columns`."""
    if step == 1:
        _pack_pairs(matrix, start, 1, depth_step, count, depth, panels, panels_start, tile_columns(LANE))
        return
    columns, squares = tile_columns(LANE), 2 * register_lanes(LANE)  # k in a square
    whole_columns, whole_depth = count - count % columns, depth - depth % squares
    lanes = panels.view(np.uint32)
    for j in range(0, whole_columns, columns):
        panel = panels_start + j * whole_lanes(depth, matrix.itemsize)
        for k in range(0, whole_depth, squares):
            for i in range(0, columns, register_lanes(LANE)):
                source, target = start + (j + i) * step + k, (panel + k * columns) // 2 + i
                transpose_square(matrix, source, step, lanes, target, columns)
        _pack_edge(matrix, start + j * step, step, 1, columns, whole_depth, depth, panels, panel, columns)
    if whole_columns < count:
        panel = panels_start + whole_columns * whole_lanes(depth, matrix.itemsize)
        source, rest = start + whole_columns * step, count - whole_columns
        _pack_edge(matrix, source, step, 1, rest, 0, depth, panels, panel, columns)


@part
def _pack_pairs(matrix, start, step, depth_step, count, depth, panels, panels_start, width):
    """Copy rows or columns, `width` per panel, where k is not the fast index."""
    whole, pairs = count - count % width, depth - depth % 2
    lanes = panels.view(np.uint32)
    for k in range(0, pairs, 2):
        for i in range(0, whole, width):
            source = start + i * step + k * depth_step
            target = (panels_start + i * whole_lanes(depth, matrix.itemsize) + k * width) // 2
            prefetch(matrix, source + ROWS_AHEAD * depth_step)
            prefetch(matrix, source + (ROWS_AHEAD + 1) * depth_step)
            even, odd = matrix[source : source + width], matrix[source + depth_step : source + depth_step + width]
            _join(even, odd, lanes[target : target + width])
    for i in range(0, count, width):
        source, target = start + i * step, panels_start + i * whole_lanes(depth, matrix.itemsize)
        first = pairs if i < whole else 0
        _pack_edge(matrix, source, step, depth_step, min(width, count - i), first, depth, panels, target, width)


@part
def _join(even, odd, lanes):
    for i in range(len(lanes)):
        lanes[i] = np.uint32(even[i]) | (np.uint32(odd[i]) << np.uint32(16))


@part
def _pack_edge(matrix, start, step, depth_step, count, first, depth, panel, panel_start, width):
    """Copy a panel from row `first`, an even k, to its end.

    `count` of its rows or columns are inside the matrix; the others become zero.
    """
    for k in range(first, whole_lanes(depth, matrix.itemsize)):
        target = panel_start + k // 2 * 2 * width + k % 2
        for i in range(width):
            inside = i < count and k < depth
            panel[target + 2 * i] = matrix[start + i * step + k * depth_step] if inside else np.uint16(0)
