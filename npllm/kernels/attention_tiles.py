"""The pieces of blockwise attention: what happens between one head's keys and one block of its queries.

A block has as many queries as the tile of the matrix product has columns, L. Everything has one of three layouts, all
of them what the micro-kernel reads or writes:

    rows      (T, D)   queries, keys, values or gradients of a head, one after the other
    columns   (D, L)   the same of one block of queries, transposed
    block     (T, L)   the scores of a block of queries, transposed: a column, or lane, belongs to a query. So the
                       softmax, which runs over the keys, runs down the columns, all lanes at a time.

T and D are rounded up to whole tiles. What is computed there goes nowhere; what is read from there must be zero. The
lanes of the last block may be more than its queries: what they hold is finite or not, and goes nowhere either.

A row of L numbers is two registers, so short that a loop over it costs more than what it does. So what there is one of
for each lane is kept G times, (G, L), and the loops run over G rows of a block at a time.

Letters as in `npllm.reference.attention`; in a block T is the number of keys that its queries may see.
"""

import numpy as np

from npllm.kernels.gemm.instructions import address
from npllm.kernels.gemm.micro_kernel import ZEROS, multiply_tile
from npllm.kernels.gemm.packing import pack_columns, pack_rows
from npllm.kernels.gemm.tile import ROWS
from npllm.kernels.jit import part
from npllm.kernels.random import fill_random_words
from npllm.kernels.vector_math import exp, larger

GROUP = 8  # G


@part
def product(a, a_panel_step, a_row_step, a_depth_step, b, depth, c, accumulate):
    """c = A b, or += ; a: any array that holds the panels of A; b: (depth, L); c: rows of whole tiles, any width.

    a_panel_step: elements of a for each row of A, from panel to panel. The other steps are within a panel.
    """
    zero, width, zeros = c.dtype.type(0.0), c.shape[1], address(ZEROS, 0)
    for row in range(0, len(c), ROWS):
        a_panel, c_tile = address(a, row * a_panel_step), address(c, row * width)
        addend, step = (c_tile, width) if accumulate else (zeros, 0)
        multiply_tile(zero, a_panel, a_row_step, a_depth_step, address(b, 0), depth, c_tile, width, addend, step, zeros)


@part
def rows_times_columns(rows, columns, block):
    """block = rows @ columns; rows: (>= T, D); columns: (D, L); block: (T, L), T whole tiles."""
    D = rows.shape[1]
    product(rows, D, D, 1, columns, D, block, False)


@part
def transposed_times_block(panels, begin, block, columns):
    """columns = rows[begin:].T @ block; panels: from `pack_transposed` of the rows; block: as many rows as count."""
    from_begin = panels.reshape(-1)[begin * ROWS :]
    product(from_begin, panels.shape[1], 1, ROWS, block, len(block), columns, False)


@part
def add_block_times_rows(block, n_queries, rows, begin, total):
    """total[begin:] += block @ rows; block: (T, L), of which n_queries lanes count; rows: (W, L, L), L columns of each
    at a time, from `pack_block`; total: (W, >= begin + T, L), likewise."""
    L = block.shape[1]
    for w in range(len(total)):
        product(block, L, L, 1, rows[w], n_queries, total[w, begin : begin + len(block)], True)


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
def pack_queries(heads, h, first, end, columns):
    """columns = heads[first:end, h].T, with zeros to the right; heads: (T, ·, D)."""
    _, n_heads, D = heads.shape
    start = (first * n_heads + h) * D
    pack_columns(heads.reshape(-1), start, n_heads * D, 1, end - first, D, columns.reshape(-1), 0)


@part
def pack_block(heads, h, first, end, rows):
    """rows = heads[first:end, h], L columns of each at a time, with zeros to the right; rows: (W, L, L)."""
    _, n_heads, D = heads.shape
    L = rows.shape[1]
    for w in range(len(rows)):
        start = (first * n_heads + h) * D + w * L
        count = min(L, D - w * L)
        pack_columns(heads.reshape(-1), start, 1, n_heads * D, count, end - first, rows[w].reshape(-1), 0)


@part
def store_rows(total, heads, h):
    """heads[:, h] = total; total: (W, T, L), L columns of each row at a time; heads: (T, ·, D)."""
    L = total.shape[2]
    for w in range(len(total)):
        for t in range(len(heads)):
            row, total_row = heads[t, h, w * L : (w + 1) * L], total[w, t]
            for d in range(len(row)):
                row[d] = total_row[d]


@part
def store_columns(columns, factors, heads, h, first, end):
    """heads[first:end, h] = columns, times the factor of each lane, transposed; factors: (L,); heads: (T, ·, D)."""
    for lane in range(end - first):
        row, factor = heads[first + lane, h], factors[lane]
        for d in range(len(row)):
            row[d] = factor * columns[d, lane]


@part
def fill_zeros(array):
    array[:] = array.dtype.type(0.0)


@part
def first_key(starts, first, end):
    """Where the keys of the queries first ... end - 1 begin: at a whole tile, and no later than any of them may look.
    starts: (T,), or (0,): all may look as far back as there is."""
    if len(starts) == 0:
        return 0
    begin = first
    for i in range(first, end):
        begin = min(begin, np.int64(starts[i]))
    return begin // ROWS * ROWS


@part
def mask_unseen(scores, begin, starts, first):
    """Minus infinity where the key comes after the query, or before its start; scores: a block (T, L), whose first key
    is `begin` and whose first query is `first`. starts: as in `first_key`."""
    for j in range(first - begin, len(scores)):
        for lane in range(min(begin + j - first, scores.shape[1])):
            scores[j, lane] = -np.inf
    for i in range(first, min(first + scores.shape[1], len(starts))):
        for j in range(starts[i] - begin):
            scores[j, i - first] = -np.inf


@part
def softmax_numerators(scores, scale, maximum, total):
    """scores = exp(scale (scores - maximum)). maximum, total: (G, L), all of whose rows become the maximum and the sum
    of each column."""
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
    """dscores = scale · probabilities (dscores - delta), where dscores is dprobabilities before. delta: (G, L), scratch
    for the sum over the keys of probabilities dprobabilities."""
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
    """a *= b, for two blocks."""
    a, b = a.reshape(-1), b.reshape(-1)
    for i in range(len(a)):
        a[i] *= b[i]


@part
def fill_dropout_factors(factors, first, mask, head, T, words):
    """The factor of every weight of a block, and 0 where there is none: after the query, in unused lanes.

    head: b·H + h. T: the length of the sequence, because the weights of the future have numbers in the random stream,
    though they are not drawn. words: scratch, (T+7,).
    """
    threshold, scale, zero = np.uint32(mask.threshold), factors.dtype.type(mask.scale), factors.dtype.type(0.0)
    fill_zeros(factors)
    for i in range(first, min(first + factors.shape[1], T)):
        start = mask.first + (head * T + i) * T
        skipped = start % 4  # words of the block of four that belong to the row before
        n_words = (skipped + i + 1 + 3) // 4 * 4
        fill_random_words(start // 4, mask.site, mask.step, mask.seed_low, mask.seed_high, words[:n_words])
        for j in range(i + 1):
            factors[j, i - first] = scale if words[skipped + j] >= threshold else zero
