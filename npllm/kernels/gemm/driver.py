"""The product in blocks that stay in the caches, split between the threads.

    for each block of rows of C                     of this thread
        for each block of k                         A's block, (BLOCK_ROWS, BLOCK_DEPTH), stays in the L2 cache
            for each block of columns of C          B's block, (BLOCK_DEPTH, BLOCK_COLUMNS), is packed: L2 too
                for each panel of B                 (BLOCK_DEPTH, columns of a tile): L1
                    for each panel of A             micro-kernel

A thread owns whole rows or whole columns of C and never a part of the sum over k, which every element takes in the same
order: so the bits do not depend on the number of threads.

Source: Goto & van de Geijn, "Anatomy of high-performance matrix multiplication", 2008.
"""

from typing import NamedTuple

import numpy as np
from numba import prange

from npllm.kernels.chunks import chunk_count
from npllm.kernels.gelu import gelu_each
from npllm.kernels.gemm.instructions import address
from npllm.kernels.gemm.micro_kernel import ZEROS, multiply_tile
from npllm.kernels.gemm.packing import pack_columns, pack_rows
from npllm.kernels.gemm.tile import ROWS, tile_columns
from npllm.kernels.jit import parallel, part

BLOCK_ROWS = 384 // ROWS * ROWS
BLOCK_DEPTH = 384
BLOCK_COLUMNS = 96  # a multiple of every tile's columns


class Matrix(NamedTuple):
    """Element [i, k] is data[i · row_step + k · column_step]; one of the steps is 1."""

    data: np.ndarray
    row_step: int
    column_step: int


class Epilogue(NamedTuple):
    """What is added to the product, and where its GELU goes. An array without elements stands for none."""

    addend: np.ndarray  # (M, N)
    bias: np.ndarray  # (N,)
    activated: np.ndarray  # (M, N)


class Range(NamedTuple):
    """Of rows or columns."""

    first: int
    end: int


def scratch_elements(itemsize: int) -> int:
    """What a thread needs: a tile, a block of A and a block of B."""
    return ROWS * tile_columns(itemsize) + BLOCK_ROWS * BLOCK_DEPTH + BLOCK_DEPTH * BLOCK_COLUMNS


@parallel
def multiply(a, a_row_step, a_column_step, b, b_row_step, b_column_step, depth, c, addend, bias, activated, scratch):
    """c = a @ b + addend + bias, and activated = gelu(c).

    a, b: flat, with their steps as in `Matrix`. depth: the number of k, at least 1. c: (M, N). addend, which may be c,
    bias and activated as in `Epilogue`. scratch: (threads, scratch_elements).
    """
    left, right = Matrix(a, a_row_step, a_column_step), Matrix(b, b_row_step, b_column_step)
    epilogue = Epilogue(addend, bias, activated)
    threads = len(scratch)
    for t in prange(threads):
        thread = np.int64(t)
        rows, columns = _share(thread, threads, c.shape[0], c.shape[1], tile_columns(c.itemsize))
        for row in range(rows.first, rows.end, BLOCK_ROWS):
            block = Range(row, min(row + BLOCK_ROWS, rows.end))
            _multiply_rows(left, right, depth, c, epilogue, block, columns, scratch[thread])


@part
def _share(thread, threads, M, N, width):
    """The rows and columns of C that are this thread's: a share of whatever makes more panels."""
    row_panels, column_panels = chunk_count(M, ROWS), chunk_count(N, width)
    if row_panels >= column_panels:
        first, end = row_panels * thread // threads, row_panels * (thread + 1) // threads
        return Range(first * ROWS, min(end * ROWS, M)), Range(0, N)
    first, end = column_panels * thread // threads, column_panels * (thread + 1) // threads
    return Range(0, M), Range(first * width, min(end * width, N))


@part
def _multiply_rows(a, b, depth, c, epilogue, rows, columns, scratch):
    """A block of rows."""
    packed_a = ROWS * tile_columns(c.itemsize)
    packed_b = packed_a + BLOCK_ROWS * BLOCK_DEPTH
    height = rows.end - rows.first
    in_place = height - height % ROWS if a.column_step == 1 else 0  # rows of A that are read where they are
    for k in range(0, depth, BLOCK_DEPTH):
        ks = Range(k, min(k + BLOCK_DEPTH, depth))
        start = (rows.first + in_place) * a.row_step + k * a.column_step
        pack_rows(
            a.data, start, a.row_step, a.column_step, height - in_place, ks.end - k,
            scratch, packed_a + in_place * (ks.end - k),
        )  # fmt: skip
        for column in range(columns.first, columns.end, BLOCK_COLUMNS):
            width = min(BLOCK_COLUMNS, columns.end - column)
            start = k * b.row_step + column * b.column_step
            pack_columns(b.data, start, b.column_step, b.row_step, width, ks.end - k, scratch, packed_b)
            _multiply_block(
                a, in_place, c, epilogue, rows, ks, Range(column, column + width), scratch, packed_a, packed_b
            )
        if ks.end == depth and epilogue.activated.size > 0:
            _activate(c, epilogue.activated, rows, columns)


@part
def _multiply_block(a, in_place, c, epilogue, rows, ks, columns, scratch, packed_a, packed_b):
    """A packed block of B, and as many columns of C, tile by tile. An edge tile is computed at the start of scratch."""
    zero, N, tile_width, depth = c.dtype.type(0.0), c.shape[1], tile_columns(c.itemsize), ks.end - ks.first
    packed_row_step, depth_step = (depth, 1) if a.column_step == 1 else (1, ROWS)
    zeros, edge = address(ZEROS, 0), address(scratch, 0)
    with_addend, with_bias = ks.first > 0 or epilogue.addend.size > 0, ks.first == 0 and epilogue.bias.size > 0
    addend = address(c, 0) if ks.first > 0 else address(epilogue.addend, 0)
    for column in range(columns.first, columns.end, tile_width):
        b_panel = address(scratch, packed_b + (column - columns.first) * depth)
        width = min(tile_width, columns.end - column)
        bias_tile = address(epilogue.bias, column) if with_bias and width == tile_width else zeros
        for row in range(rows.first, rows.end, ROWS):
            height = min(ROWS, rows.end - row)
            a_panel, row_step = address(scratch, packed_a + (row - rows.first) * depth), packed_row_step
            if row - rows.first < in_place:
                a_panel, row_step = address(a.data, row * a.row_step + ks.first), a.row_step
            if width == tile_width and height == ROWS:
                c_tile, addend_tile, step = address(c, row * N + column), zeros, 0
                if with_addend:
                    addend_tile, step = addend + (row * N + column) * c.itemsize, N
                multiply_tile(
                    zero, a_panel, row_step, depth_step, b_panel, depth, c_tile, N, addend_tile, step, bias_tile
                )
            else:
                multiply_tile(zero, a_panel, row_step, depth_step, b_panel, depth, edge, tile_width, zeros, 0, zeros)
                _finish_edge(scratch, tile_width, c, epilogue, ks.first == 0, row, row + height, column, column + width)


@part
def _finish_edge(tile, tile_width, c, epilogue, is_first, row, row_end, column, column_end):
    """The part of a tile, flat, that is inside the matrix, with the bias and the addend."""
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
    """A block of rows, which is still in the L2 cache, in long rows: tile by tile, the loops would be too short."""
    for i in range(rows.first, rows.end):
        gelu_each(c[i, columns.first : columns.end], activated[i, columns.first : columns.end])
