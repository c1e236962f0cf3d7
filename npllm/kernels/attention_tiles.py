"""The steps of blockwise attention, for one head's keys and one block of its queries.

A block has L queries: as many as the tile of the matrix product has columns. Every
array has one of three layouts, which the micro-kernel reads or writes:

    rows      (T, D)   queries, keys, values or gradients of a head, one per row
    columns   (D, L)   those of one block of queries, transposed
    scores    (T, L)   those of one block of queries, transposed: each column, or
                       lane, belongs to one query; the softmax over the keys runs
                       down the columns, all lanes at a time

T and D are rounded up to whole tiles. Results in the padding are never used; inputs in
the padding must be zero. The last block may have more lanes than queries. Whatever
these lanes hold, finite or not, is never used.

A row of L numbers is only two registers: a loop over it costs more than its work. A
number for each lane is therefore repeated G times, (G, L), and loops run over G rows of
the scores at a time.

Letters are those of `npllm.reference.attention`, but T is the number of keys that a
block sees.
"""

from typing import NamedTuple

import numpy as np

from npllm.kernels.gemm.instructions import address
from npllm.kernels.gemm.micro_kernel import ZEROS, multiply_tile
from npllm.kernels.gemm.packing import pack_columns, pack_rows
from npllm.kernels.gemm.tile import TILE_ROWS
from npllm.kernels.jit import part
from npllm.kernels.random import fill_random_words
from npllm.kernels.vector_math import exp, larger

GROUP = 8  # G


class Block(NamedTuple):
    """A block of queries of one head, and the keys that it may see."""

    head: int  # h
    number: int  # b·H + h, the head's number in the batch, for dropout's random stream
    length: int  # of the sequence
    first_query: int
    end: int  # one past the last query, and so one past the last key
    first_key: int  # the first of a tile, at or before the first key that any query may see


@part
def query_block(starts, lse, b, h, first_query, n_queries):
    """Return the Block of the sequence b and the head h that starts at first_query.

    starts: (T,), those of the sequence, or (0,): every query may see all keys from 0
    on. lse: (H, T), used for its shape.
    """
    H, T = lse.shape
    end = min(first_query + n_queries, T)
    first_key = first_query if len(starts) > 0 else 0
    for i in range(first_query, min(end, len(starts))):
        first_key = min(first_key, np.int64(starts[i]))
    return Block(h, b * H + h, T, first_query, end, first_key // TILE_ROWS * TILE_ROWS)


class PanelSteps(NamedTuple):
    """The layout of the panels of A, in elements.

    panel: from one panel to the next, for each row of the panel. row, depth: within a
    panel.
    """

    panel: int
    row: int
    depth: int


@part
def product(a, steps, b, depth, c, accumulate):
    """c = A b, or c += A b with `accumulate`.

    a: any array that holds the panels of A in the layout `steps`. b: (depth, L). c:
    whole tiles of rows, of any width.
    """
    zero, width, zeros = c.dtype.type(0.0), c.shape[1], address(ZEROS, 0)
    for row in range(0, len(c), TILE_ROWS):
        a_panel, c_tile = address(a, row * steps.panel), address(c, row * width)
        addend, step = (c_tile, width) if accumulate else (zeros, 0)
        multiply_tile(zero, a_panel, steps.row, steps.depth, address(b, 0), depth, c_tile, width, addend, step, zeros)


@part
def rows_times_columns(rows, columns, scores):
    """scores = rows @ columns.

    rows: (>= T, D). columns: (D, L). scores: (T, L), T a multiple of the tile's rows.
    """
    D = rows.shape[1]
    product(rows, PanelSteps(D, D, 1), columns, D, scores, False)


@part
def transposed_times_scores(panels, first_key, scores, columns):
    """columns = rows[first_key:].T @ scores, for as many rows as scores has.

    panels: the rows, packed by `pack_transposed`. scores: (T, L). columns: (D, L).
    """
    from_first_key = panels.reshape(-1)[first_key * TILE_ROWS :]
    product(from_first_key, PanelSteps(panels.shape[1], 1, TILE_ROWS), scores, len(scores), columns, False)


@part
def add_scores_times_rows(scores, rows, block, total):
    """total[first_key:] += scores @ rows, for the queries of the block.

    scores: (T, L). rows: (P, L, L), packed by `pack_query_rows`. total: (P, >=
    first_key + T, L). rows and total hold L columns of each row at a time.
    """
    L, first, n_queries = scores.shape[1], block.first_key, block.end - block.first_query
    for p in range(len(total)):
        product(scores, PanelSteps(L, L, 1), rows[p], n_queries, total[p, first : first + len(scores)], True)


@part
def pack_head(heads, h, rows):
    """rows = heads[:, h], followed by rows of zeros; heads: (T, ·, D)."""
    T, n_heads, D = heads.shape
    pack_rows(heads.reshape(-1), h * D, n_heads * D, 1, T, D, rows.reshape(-1), 0)


@part
def pack_transposed(heads, h, panels):
    """panels = heads[:, h].T, (D, T), packed for the micro-kernel; heads: (T, ·, D)."""
    T, n_heads, D = heads.shape
    pack_rows(heads.reshape(-1), h * D, 1, n_heads * D, D, T, panels.reshape(-1), 0)


@part
def pack_query_columns(heads, block, columns):
    """columns = the block's rows of heads, transposed, followed by columns of zeros.

    heads: (T, ·, D). columns: (D, L).
    """
    _, n_heads, D = heads.shape
    start, n_queries = (block.first_query * n_heads + block.head) * D, block.end - block.first_query
    pack_columns(heads.reshape(-1), start, n_heads * D, 1, n_queries, D, columns.reshape(-1), 0)


@part
def pack_query_rows(heads, block, rows):
    """rows = the block's rows of heads, L columns of each at a time, padded with zeros.

    heads: (T, ·, D). rows: (P, L, L).
    """
    _, n_heads, D = heads.shape
    L, n_queries = rows.shape[1], block.end - block.first_query
    for p in range(len(rows)):
        start = (block.first_query * n_heads + block.head) * D + p * L
        count = min(L, D - p * L)
        pack_columns(heads.reshape(-1), start, 1, n_heads * D, count, n_queries, rows[p].reshape(-1), 0)


@part
def store_rows(total, heads, h):
    """heads[:, h] = total.

    total: (P, T, L), L columns of each row at a time. heads: (T, ·, D).
    """
    L = total.shape[2]
    for p in range(len(total)):
        for t in range(len(heads)):
            row, total_row = heads[t, h, p * L : (p + 1) * L], total[p, t]
            for d in range(len(row)):
                row[d] = total_row[d]


@part
def store_columns(columns, heads, block):
    """The block's rows of heads = columns, transposed.

    columns: (D, L). heads: (T, ·, D).
    """
    for lane in range(block.end - block.first_query):
        row = heads[block.first_query + lane, block.head]
        for d in range(len(row)):
            row[d] = columns[d, lane]


@part
def fill_zeros(array):
    array[:] = array.dtype.type(0.0)


@part
def mask_unseen(scores, starts, block):
    """Set the scores to minus infinity where the query may not see the key.

    That is where the key is after the query, or before the query's start. scores:
    (T, L); its first row belongs to the block's first key. starts: as in `query_block`.
    """
    first_query, first_key, L = block.first_query, block.first_key, scores.shape[1]
    for j in range(first_query - first_key, len(scores)):
        for lane in range(min(first_key + j - first_query, L)):
            scores[j, lane] = -np.inf
    for i in range(first_query, min(first_query + L, len(starts))):
        for j in range(starts[i] - first_key):
            scores[j, i - first_query] = -np.inf


@part
def softmax_numerators(scores, scale, maximum, total):
    """scores = exp(scale (scores - maximum)).

    Fills all rows of maximum and total, (G, L) each, with the maximum and the sum of
    each column.
    """
    scores, wide_maximum, wide_total = scores.reshape(-1), maximum.reshape(-1), total.reshape(-1)
    wide_maximum[:] = scores.dtype.type(-np.inf)
    for start in range(0, len(scores), len(wide_maximum)):
        part_of_scores = scores[start : start + len(wide_maximum)]
        for i in range(len(part_of_scores)):
            wide_maximum[i] = larger(wide_maximum[i], part_of_scores[i])
    for g in range(1, len(maximum)):
        for lane in range(maximum.shape[1]):
            maximum[0, lane] = larger(maximum[0, lane], maximum[g, lane])
    repeat_first_row(maximum)
    fill_zeros(wide_total)
    for start in range(0, len(scores), len(wide_total)):
        part_of_scores = scores[start : start + len(wide_total)]
        for i in range(len(part_of_scores)):
            part_of_scores[i] = exp(scale * (part_of_scores[i] - wide_maximum[i]))
            wide_total[i] += part_of_scores[i]
    sum_rows(total)


@part
def store_lse(maximum, total, scale, block, lse):
    """Store the block's part of lse = scale · maximum + log total.

    maximum, total: (G, L), as `softmax_numerators` leaves them. lse: (T,).
    """
    for lane in range(block.end - block.first_query):
        lse[block.first_query + lane] = scale * maximum[0, lane] + np.log(total[0, lane])


@part
def divide_columns(columns, total):
    """Divide every column of columns, (D, L), by the sum of its numerators.

    total: (G, L), whose rows are equal; it becomes 1 / total.
    """
    columns, inverse = columns.reshape(-1), total.reshape(-1)
    for i in range(len(inverse)):
        inverse[i] = inverse.dtype.type(1.0) / inverse[i]
    for start in range(0, len(columns), len(inverse)):
        part_of_columns = columns[start : start + len(inverse)]
        for i in range(len(part_of_columns)):
            part_of_columns[i] *= inverse[i]


@part
def load_lse(lse, block, lanes):
    """Fill every row of lanes with the block's part of lse, and 0 in the other lanes.

    lse: (T,). lanes: (G, L).
    """
    fill_zeros(lanes)
    for lane in range(block.end - block.first_query):
        lanes[0, lane] = lse[block.first_query + lane]
    repeat_first_row(lanes)


@part
def sum_rows(lanes):
    """Set every row of lanes, (G, L), to the sum of all its rows."""
    for g in range(1, len(lanes)):
        for lane in range(lanes.shape[1]):
            lanes[0, lane] += lanes[g, lane]
    repeat_first_row(lanes)


@part
def repeat_first_row(lanes):
    """Set every row of lanes, (G, L), to the first."""
    for g in range(1, len(lanes)):
        for lane in range(lanes.shape[1]):
            lanes[g, lane] = lanes[0, lane]


@part
def probabilities(scores, scale, lse):
    """scores = exp(scale · scores - lse); lse: (G, L), whose rows are equal."""
    scores, lse = scores.reshape(-1), lse.reshape(-1)
    for start in range(0, len(scores), len(lse)):
        part_of_scores = scores[start : start + len(lse)]
        for i in range(len(part_of_scores)):
            part_of_scores[i] = exp(scale * part_of_scores[i] - lse[i])


@part
def softmax_backward(probabilities, scale, dscores, delta):
    """dscores = scale · probabilities (dscores - delta).

    dscores holds dprobabilities before. delta: (G, L); it becomes the sum over the keys
    of probabilities · dprobabilities.
    """
    probabilities, dscores, wide_delta = probabilities.reshape(-1), dscores.reshape(-1), delta.reshape(-1)
    fill_zeros(wide_delta)
    for start in range(0, len(dscores), len(wide_delta)):
        p, dp = probabilities[start : start + len(wide_delta)], dscores[start : start + len(wide_delta)]
        for i in range(len(dp)):
            wide_delta[i] += p[i] * dp[i]
    sum_rows(delta)
    for start in range(0, len(dscores), len(wide_delta)):
        p, dp = probabilities[start : start + len(wide_delta)], dscores[start : start + len(wide_delta)]
        for i in range(len(dp)):
            dp[i] = scale * p[i] * (dp[i] - wide_delta[i])


@part
def multiply(a, b):
    """a *= b, for two arrays of scores."""
    a, b = a.reshape(-1), b.reshape(-1)
    for i in range(len(a)):
        a[i] *= b[i]


@part
def fill_dropout_factors(factors, block, mask, words):
    """Fill factors with the dropout factor of every weight of a block, from key 0 on.

    The factor is 0 for keys after the query and in unused lanes. factors: (>= end, L).
    words: scratch, (length + 7,). Weights of keys after the query have numbers in the
    random stream too, but their words are not computed.
    """
    first, T = block.first_query, block.length
    threshold, scale, zero = np.uint32(mask.threshold), factors.dtype.type(mask.scale), factors.dtype.type(0.0)
    fill_zeros(factors)
    for i in range(first, block.end):
        start = mask.first + (block.number * T + i) * T
        skipped = start % 4  # words in the block of four that belong to the previous row
        n_words = (skipped + i + 1 + 3) // 4 * 4
        fill_random_words(start // 4, mask.stream, mask.step, mask.seed_low, mask.seed_high, words[:n_words])
        for j in range(i + 1):
            factors[j, i - first] = scale if words[skipped + j] >= threshold else zero
