"""Random words for dropout, the same as those of `npllm.reference.random`."""

import numpy as np

from npllm.kernels.jit import inlined, part
from npllm.reference.random import LOW_32_BITS, M0, M1, ROUNDS, W0, W1

_M0, _M1, _W0, _W1 = np.uint64(M0), np.uint64(M1), np.uint64(W0), np.uint64(W1)
_LOW, _32 = np.uint64(LOW_32_BITS), np.uint64(32)


@inlined
def philox_block(block, stream, step, seed_low, seed_high):
    """Return the four words of a block, from its number and address.

    All arguments and words are uint64; the last four arguments are below 2^32.
    """
    c0, c1, c2, c3 = block & _LOW, block >> _32, stream, step
    k0, k1 = seed_low, seed_high
    for _ in range(ROUNDS):
        product_0, product_1 = c0 * _M0, c2 * _M1
        c0, c1 = (product_1 >> _32) ^ c1 ^ k0, product_1 & _LOW
        c2, c3 = (product_0 >> _32) ^ c3 ^ k1, product_0 & _LOW
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return c0, c1, c2, c3


@part
def fill_random_words(first_block, stream, step, seed_low, seed_high, words):
    """Fill words with the random words of the blocks from first_block on.

    words: (n,) uint32, n a multiple of four.
    """
    first_block = np.uint64(first_block)
    stream, step, seed_low, seed_high = np.uint64(stream), np.uint64(step), np.uint64(seed_low), np.uint64(seed_high)
    for i in range(len(words) // 4):
        w0, w1, w2, w3 = philox_block(first_block + np.uint64(i), stream, step, seed_low, seed_high)
        words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3] = w0, w1, w2, w3
