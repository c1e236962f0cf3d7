r"""Counter-based random numbers: a random word is a pure function of its address.

A stateful generator gives the n-th number only after the n - 1 before it. What a layer
draws then depends on everything that was drawn earlier, on the number of threads, and
on where a run was resumed. A counter-based generator has no state:

$$
word = philox(counter, key)
counter = (\lfloor element / 4 \rfloor, stream, step)
key = seed
$$

A dropout mask need not be kept for the backward, which computes it again, element by
element and in any order. A run that is resumed at step 7000 draws the same words as a
run without an interruption.

Philox4x32-10 is ten rounds of two products of 32-bit words, of which the upper halves
hi and the lower halves lo are used. Each round turns the counter words $c_0$ to $c_3$
into

$$
c_0 = hi(M_1 c_2) \oplus c_1 \oplus k_0
c_1 = lo(M_1 c_2)
c_2 = hi(M_0 c_0) \oplus c_3 \oplus k_1
c_3 = lo(M_0 c_0)
$$

where $\oplus$ is "exclusive or" and the right-hand sides hold the old words. It then
adds the Weyl constants $W_0$ and $W_1$ to the key $k_0$ and $k_1$. One block gives four
words.

Source: Salmon, Moraes, Dror & Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC
2011.
"""

import numpy as np

M0, M1 = 0xD2511F53, 0xCD9E8D57
W0, W1 = 0x9E3779B9, 0xBB67AE85
ROUNDS = 10
LOW_32_BITS = 0xFFFFFFFF


def philox(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Return the random words of counters, (n, 4) uint32.

    counter: (n, 4) integers below $2^{32}$. key: two integers below $2^{32}$.
    """
    c0, c1, c2, c3 = np.asarray(counter, np.uint64).T
    k0, k1 = key
    for _ in range(ROUNDS):
        product_0, product_1 = c0 * np.uint64(M0), c2 * np.uint64(M1)
        c0, c1, c2, c3 = (
            (product_1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0),
            product_1 & np.uint64(LOW_32_BITS),
            (product_0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1),
            product_0 & np.uint64(LOW_32_BITS),
        )
        k0, k1 = (k0 + W0) & LOW_32_BITS, (k1 + W1) & LOW_32_BITS
    return np.stack([c0, c1, c2, c3], axis=1).astype(np.uint32)


def random_words(count: int, *, seed: int, step: int = 0, stream: int = 0, first: int = 0) -> np.ndarray:
    """Return the random words of `count` elements from number `first` on, as uint32.

    seed: below $2^{64}$. step, stream: below $2^{32}$; `random_streams.py` names them.
    Element e is word `e % 4` of the block whose counter is (low half of `e // 4`, high
    half of `e // 4`, stream, step).
    """
    block = np.arange(first // 4, (first + count + 3) // 4, dtype=np.uint64)
    counter = np.empty((len(block), 4), np.uint64)
    counter[:, 0], counter[:, 1] = block & np.uint64(LOW_32_BITS), block >> np.uint64(32)
    counter[:, 2], counter[:, 3] = stream, step
    words = philox(counter, key=(seed & LOW_32_BITS, seed >> 32))
    return words.reshape(-1)[first % 4 : first % 4 + count]


def random_normal(count: int, *, seed: int, step: int = 0, stream: int = 0, first: int = 0) -> np.ndarray:
    """Return `count` independent N(0, 1) draws from number `first` on, as float64.

    Each draw is the Box-Muller transform of two words. Box & Muller, "A note on the
    generation of random normal deviates", 1958.
    """
    words = random_words(2 * count, seed=seed, step=step, stream=stream, first=2 * first).reshape(count, 2)
    u1, u2 = (words.T + 0.5) / 2.0**32  # inside (0, 1): log(0) cannot happen
    return np.sqrt(-2.0 * np.log(u1)) * np.cos(2.0 * np.pi * u2)


def random_permutation(n: int, *, seed: int, step: int = 0, stream: int = 0) -> np.ndarray:
    """Return a uniformly random order of 0 ... n - 1, (n,) int64.

    It is the order of n random 64-bit keys.
    """
    words = random_words(2 * n, seed=seed, step=step, stream=stream).reshape(n, 2).astype(np.uint64)
    return np.argsort(words[:, 0] << np.uint64(32) | words[:, 1], kind="stable")
