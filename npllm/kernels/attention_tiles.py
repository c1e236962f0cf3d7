"""The pieces of blockwise attention: what happens between one head's keys and one block of its queries.

A block has as many queries as the tile of the matrix product has columns, L. Every array
has one of three layouts, all of them what the micro-kernel reads or writes:

    rows      (T, D)   queries, keys, values or gradients of a head, one after the other
    columns   (D, L)   those of one block of queries, transposed
    scores    (T, L)   of a block of queries, transposed: a column, or lane, belongs to a
                       query. The softmax runs over the keys, so it runs down the columns,
                       all lanes at a time.

T and D are rounded up to whole tiles. What is computed in the filling is never used; what
is read from it must be zero. The last block may have more lanes than queries: what those
lanes hold, finite or not, is never used either.

A row of L numbers is two registers, so short that a loop over it costs more than what it
does. A number for each lane is therefore kept G times, (G, L), and the loops run over G
rows of the scores at a time.

Letters as in `npllm.reference.attention`; T is here the number of keys that a block sees.
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
    """Queries of one head that are computed together, and the keys that they may see."""

    head: int  # h
    number: int  # b·H + h, of the head in the batch: dropout's random stream is numbered by it
    length: int  # of the sequence
    first_query: int
    end: int  # one past the last query, and so one past the last key
    first_key: int  # where a tile starts; no later than any of the queries may look


@part
def query_block(starts, lse, b, h, first_query, n_queries):
    """The Block of the sequence b and the head h that starts at first_query.

    starts: (T,) of the sequence, or (0,): all queries may look as far back as there is. lse: (H, T), for its shape.
    """
    H, T = lse.shape
    end = min(first_query + n_queries, T)
    first_key = first_query if len(starts) > 0 else 0
    for i in range(first_query, min(end, len(starts))):
        first_key = min(first_key, np.int64(starts[i]))
    return Block(h, b * H + h, T, first_query, end, first_key // TILE_ROWS * TILE_ROWS)


class PanelSteps(NamedTuple):
    """How A lies in memory, in elements: from one panel to the next, as many for each row; and within a panel."""

    panel: int
    row: int
    depth: int


@part
def product(a, steps, b, depth, c, accumulate):
    """c = A b, or += ; a: any array that holds the panels of A, by PanelSteps; b: (depth, L); c: rows of whole tiles,
    any width."""
    zero, width, zeros = c.dtype.type(0.0), c.shape[1], address(ZEROS, 0)
    for row in range(0, len(c), TILE_ROWS):
        a_panel, c_tile = address(a, row * steps.panel), address(c, row * width)
        addend, step = (c_tile, width) if accumulate else (zeros, 0)
        multiply_tile(zero, a_panel, steps.row, steps.depth, address(b, 0), depth, c_tile, width, addend, step, zeros)


@part
def rows_times_columns(rows, columns, scores):
    """scores = rows @ columns; rows: (>= T, D); columns: (D, L); scores: (T, L), T whole tiles."""
    D = rows.shape[1]
    product(rows, PanelSteps(D, D, 1), columns, D, scores, False)


@part
def transposed_times_scores(panels, first_key, scores, columns):
    """columns = rows[first_key:].T @ scores; panels: from `pack_transposed` of the rows; scores: as many rows as
    count."""
    from_first_key = panels.reshape(-1)[first_key * TILE_ROWS :]
    product(from_first_key, PanelSteps(panels.shape[1], 1, TILE_ROWS), scores, len(scores), columns, False)


@part
def add_scores_times_rows(scores, rows, block, total):
    """total[first_key:] += scores @ rows, for the queries of the block. scores: (T, L). rows: (P, L, L), from
    `pack_query_rows`. total: (P, >= first_key + T, L): L columns of each row at a time, as in rows."""
    L, first, n_queries = scores.shape[1], block.first_key, block.end - block.first_query
    for p in range(len(total)):
        product(scores, PanelSteps(L, L, 1), rows[p], n_queries, total[p, first : first + len(scores)], True)


@part
def pack_head(heads, h, rows):
    """rows = heads[:, h], with zeros below; heads: (T, ·, D)."""
    T, n_heads, D = heads.shape
    pack_rows(heads.reshape(-1), h * D, n_heads * D, 1, T, D, rows.reshape(-1), 0)


@part
def pack_transposed(heads, h, panels):
    """panels = heads[:, h].T, in panels for the micro-kernel, (D, T); heads: (T, ·, D)."""
    T, n_heads, D = heads.shape
    pack_rows(heads.reshape(-1), h * D, 1, n_heads * D, D, T, panels.reshape(-1), 0)


@part
def pack_query_columns(heads, block, columns):
    """columns = the block's rows of heads, transposed, with zeros to the right; heads: (T, ·, D)."""
    _, n_heads, D = heads.shape
    start, n_queries = (block.first_query * n_heads + block.head) * D, block.end - block.first_query
    pack_columns(heads.reshape(-1), start, n_heads * D, 1, n_queries, D, columns.reshape(-1), 0)


@part
def pack_query_rows(heads, block, rows):
    """rows = the block's rows of heads, L columns of each at a time, with zeros to the right; rows: (P, L, L)."""
    _, n_heads, D = heads.shape
    L, n_queries = rows.shape[1], block.end - block.first_query
    for p in range(len(rows)):
        start = (block.first_query * n_heads + block.head) * D + p * L
        count = min(L, D - p * L)
        pack_columns(heads.reshape(-1), start, 1, n_heads * D, count, n_queries, rows[p].reshape(-1), 0)


@part
def store_rows(total, heads, h):
    """heads[:, h] = total; total: (P, T, L), L columns of each row at a time; heads: (T, ·, D)."""
    L = total.shape[2]
    for p in range(len(total)):
        for t in range(len(heads)):
            row, total_row = heads[t, h, p * L : (p + 1) * L], total[p, t]
            for d in range(len(row)):
                row[d] = total_row[d]


@part
def store_columns(columns, heads, block):
    """The block's rows of heads = columns, transposed; heads: (T, ·, D)."""
    for lane in range(block.end - block.first_query):
        row = heads[block.first_query + lane, block.head]
        for d in range(len(row)):
            row[d] = columns[d, lane]


@part
def fill_zeros(array):
    array[:] = array.dtype.type(0.0)


@part
def mask_unseen(scores, starts, block):
    """Minus infinity where the key comes after the query, or before the query's start.

    scores: (T, L), its first row that of the block's first key. starts: as in `query_block`.
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
    """scores = exp(scale (scores - maximum)). maximum, total: (G, L); all their rows become the maximum and the sum of
    each column."""
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
    """The block's part of lse = scale · maximum + log total, as `softmax_numerators` leaves them; lse: (T,)."""
    for lane in range(block.end - block.first_query):
        lse[block.first_query + lane] = scale * maximum[0, lane] + np.log(total[0, lane])


@part
def divide_columns(columns, total):
    """Every column of (D, L) by the sum of its numerators. total: (G, L), of equal rows; it becomes 1 / total."""
    columns, inverse = columns.reshape(-1), total.reshape(-1)
    for i in range(len(inverse)):
        inverse[i] = inverse.dtype.type(1.0) / inverse[i]
    for start in range(0, len(columns), len(inverse)):
        part_of_columns = columns[start : start + len(inverse)]
        for i in range(len(part_of_columns)):
            part_of_columns[i] *= inverse[i]


@part
def load_lse(lse, block, lanes):
    """Every row of lanes, (G, L), = lse of the block's queries, and 0 in the lanes beyond; lse: (T,)."""
    fill_zeros(lanes)
    for lane in range(block.end - block.first_query):
        lanes[0, lane] = lse[block.first_query + lane]
    repeat_first_row(lanes)


@part
def sum_rows(lanes):
    """Every row = the sum of all rows; lanes: (G, L)."""
    for g in range(1, len(lanes)):
        for lane in range(lanes.shape[1]):
            lanes[0, lane] += lanes[g, lane]
    repeat_first_row(lanes)


@part
def repeat_first_row(lanes):
    """Every row = the first; lanes: (G, L)."""
    for g in range(1, len(lanes)):
        for lane in range(lanes.shape[1]):
            lanes[g, lane] = lanes[0, lane]


@part
def probabilities(scores, scale, lse):
    """scores = exp(scale · scores - lse); lse: (G, L), of equal rows."""
    scores, lse = scores.reshape(-1), lse.reshape(-1)
    for start in range(0, len(scores), len(lse)):
        part_of_scores = scores[start : start + len(lse)]
        for i in range(len(part_of_scores)):
            part_of_scores[i] = exp(scale * part_of_scores[i] - lse[i])


@part
def softmax_backward(probabilities, scale, dscores, delta):
    """dscores = scale · probabilities (dscores - delta). dscores holds dprobabilities at first. delta: (G, L), becomes
    the sum over the keys of probabilities · dprobabilities."""
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
    """The factor of every weight of a block, from key 0 on; 0 after the query, and in unused lanes.

    factors: (>= end, L). words: scratch, (length + 7,). The weights of the future have numbers in the random stream
    too, though they are not drawn.
    """
    first, T = block.first_query, block.length
    threshold, scale, zero = np.uint32(mask.threshold), factors.dtype.type(mask.scale), factors.dtype.type(0.0)
    fill_zeros(factors)
    for i in range(first, block.end):
        start = mask.first + (block.number * T + i) * T
        skipped = start % 4  # words of the block of four that belong to the row before
        n_words = (skipped + i + 1 + 3) // 4 * 4
        fill_random_words(start // 4, mask.stream, mask.step, mask.seed_low, mask.seed_high, words[:n_words])
        for j in range(i + 1):
            factors[j, i - first] = scale if words[skipped + j] >= threshold else zero
