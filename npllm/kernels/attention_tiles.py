"""The pieces of blockwise attention: everything that happens between one head's keys and one block of its queries.

Everything is made of rows of L = LANES numbers, a few vector registers each, so that no inner loop has a remainder:

    panels   (P, T, L)   the queries, keys or values of a head: row t, column d is panels[d // L, t, d % L]
    block    (T, L)      the scores of L queries, transposed: a column, or lane, belongs to a query. So the softmax,
                         which runs over the keys, runs down the columns, all lanes at a time.
    columns  (D, L)      the same L queries themselves, or their results, transposed likewise

The last panel of a head and the last block of a sequence may be narrower than L. What is computed in their unused lanes
is anything, NaN included, and goes nowhere: no loop adds one lane to another.

The length of most loops over the lanes is read from an array, although it is LANES: a short loop of a known length
would be unrolled, and then not be vectorised.

Letters as in `npllm.reference.attention`; in a block T is the number of keys that its queries may see.
"""

import numpy as np

from npllm.kernels.jit import inlined, part
from npllm.kernels.random import fill_random_words
from npllm.kernels.vector_math import exp

LANES = 32


@part
def add_product(a, b, out):
    """out += a @ b; a: (R, K), of any strides; b: (K, L); out: (R, L).

    A tile of 4 x 4 coefficients stays in registers while it runs along the lanes. One core of an AVX-512 server CPU
    reaches 52 to 64 GFLOP/s in float32, against 15 to 33 with one row of coefficients at a time.
    """
    R, K = a.shape
    b, out = b.reshape(-1), out.reshape(-1)
    whole_R, whole_K = R - R % 4, K - K % 4
    for r in range(0, whole_R, 4):
        out_rows = out[r * LANES : (r + 4) * LANES]
        for k in range(0, whole_K, 4):
            _add_product_4x4(a[r : r + 4, k : k + 4], b[k * LANES : (k + 4) * LANES], out_rows)
    for r in range(R):
        for k in range(whole_K if r < whole_R else 0, K):
            _add_multiple(a[r, k], b[k * LANES : (k + 1) * LANES], out[r * LANES : (r + 1) * LANES])


@inlined
def _add_product_4x4(a, b, out):
    """out += a @ b; a: (4, 4); b and out: (4, L), flat: with constant distances the compiler need not check overlaps"""
    a00, a01, a02, a03 = a[0, 0], a[0, 1], a[0, 2], a[0, 3]
    a10, a11, a12, a13 = a[1, 0], a[1, 1], a[1, 2], a[1, 3]
    a20, a21, a22, a23 = a[2, 0], a[2, 1], a[2, 2], a[2, 3]
    a30, a31, a32, a33 = a[3, 0], a[3, 1], a[3, 2], a[3, 3]
    for lane in range(LANES):
        b0, b1, b2, b3 = b[lane], b[LANES + lane], b[2 * LANES + lane], b[3 * LANES + lane]
        # From left to right, each term is one FMA onto the sum before; with += the products would be summed first.
        out[lane] = out[lane] + a00 * b0 + a01 * b1 + a02 * b2 + a03 * b3
        out[LANES + lane] = out[LANES + lane] + a10 * b0 + a11 * b1 + a12 * b2 + a13 * b3
        out[2 * LANES + lane] = out[2 * LANES + lane] + a20 * b0 + a21 * b1 + a22 * b2 + a23 * b3
        out[3 * LANES + lane] = out[3 * LANES + lane] + a30 * b0 + a31 * b1 + a32 * b2 + a33 * b3


@inlined
def _add_multiple(factor, b, out):
    for lane in range(len(out)):
        out[lane] += factor * b[lane]


@part
def set_to_keys_times_queries(block, keys, queries):
    """block = keys @ queries; block: (T, L); keys: panels, of which the first T rows count; queries: columns."""
    fill_zeros(block)
    for p in range(len(keys)):
        d = slice(p * LANES, min((p + 1) * LANES, len(queries)))
        add_product(keys[p, : len(block), : d.stop - d.start], queries[d], block)


@part
def set_to_weighted_sum(columns, values, weights):
    """columns = values.T @ weights; weights: a block (T, L); values: panels, of which the first T rows count."""
    fill_zeros(columns)
    for p in range(len(values)):
        d = slice(p * LANES, min((p + 1) * LANES, len(columns)))
        add_product(values[p, : len(weights), : d.stop - d.start].T, weights, columns[d])


@part
def add_outer_product(panels, weights, queries, first, end):
    """panels += weights @ queries; weights: a block (T, L); queries: panels, of which rows first ... end - 1 count."""
    for p in range(len(panels)):
        add_product(weights[:, : end - first], queries[p, first:end], panels[p, : len(weights)])


@part
def fill_zeros(array):
    array[:] = array.dtype.type(0.0)


@part
def load_panels(heads, h, scale, panels):
    """panels = scale · heads[:, h]; heads: (T, ·, D)."""
    scale = heads.dtype.type(scale)
    for p in range(len(panels)):
        for t in range(len(heads)):
            row = heads[t, h, p * LANES : (p + 1) * LANES]
            for lane in range(len(row)):
                panels[p, t, lane] = scale * row[lane]


@part
def store_panels(panels, heads, h):
    """heads[:, h] = panels; heads: (T, ·, D)."""
    for p in range(len(panels)):
        for t in range(len(heads)):
            row = heads[t, h, p * LANES : (p + 1) * LANES]
            for lane in range(len(row)):
                row[lane] = panels[p, t, lane]


@part
def load_columns(panels, first, end, columns):
    """columns = the rows first ... end - 1 of panels, transposed."""
    for d in range(len(columns)):
        panel, row = panels[d // LANES, first:end], columns[d]
        for lane in range(len(panel)):
            row[lane] = panel[lane, d % LANES]


@part
def store_columns(columns, factors, heads, h, first, end):
    """heads[first:end, h] = columns, times the factor of each lane, transposed; factors: (L,); heads: (T, ·, D)."""
    for lane in range(end - first):
        row, factor = heads[first + lane, h], factors[lane]
        for d in range(len(row)):
            row[d] = factor * columns[d, lane]


@part
def mask_future(scores, first):
    """Minus infinity where the key comes after the query; scores: a block (T, L), whose first query is `first`."""
    for j in range(first, len(scores)):
        for lane in range(j - first):
            scores[j, lane] = -np.inf


@part
def softmax_numerators(scores, maximum, total):
    """scores = exp(scores - maximum); maximum, total: (L,), the maximum and the sum of each column."""
    maximum[:] = scores.dtype.type(-np.inf)
    for j in range(len(scores)):
        for lane in range(len(maximum)):
            maximum[lane] = scores[j, lane] if scores[j, lane] > maximum[lane] else maximum[lane]
    fill_zeros(total)
    for j in range(len(scores)):
        for lane in range(len(total)):
            scores[j, lane] = exp(scores[j, lane] - maximum[lane])
            total[lane] += scores[j, lane]


@part
def exp_difference(scores, subtrahend):
    """scores = exp(scores - subtrahend); subtrahend: (L,)."""
    for j in range(len(scores)):
        for lane in range(len(subtrahend)):
            scores[j, lane] = exp(scores[j, lane] - subtrahend[lane])


@part
def softmax_backward(probabilities, dscores, delta):
    """dscores = probabilities (dscores - delta), where dscores is dprobabilities before. delta: (L,), scratch for the
    sum over the keys of probabilities dprobabilities."""
    fill_zeros(delta)
    for j in range(len(dscores)):
        for lane in range(len(delta)):
            delta[lane] += probabilities[j, lane] * dscores[j, lane]
    for j in range(len(dscores)):
        for lane in range(len(delta)):
            dscores[j, lane] = probabilities[j, lane] * (dscores[j, lane] - delta[lane])


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
    for i in range(first, min(first + LANES, T)):
        start = mask.first + (head * T + i) * T
        skipped = start % 4  # words of the block of four that belong to the row before
        n_words = (skipped + i + 1 + 3) // 4 * 4
        fill_random_words(start // 4, mask.site, mask.step, mask.seed_low, mask.seed_high, words[:n_words])
        for j in range(i + 1):
            factors[j, i - first] = scale if words[skipped + j] >= threshold else zero
