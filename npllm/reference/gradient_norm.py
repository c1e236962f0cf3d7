r"""The norm of the whole gradient, for clipping.

$$
norm = \sqrt{\sum_i g_i^2}
$$

The order of the sum is fixed: the squares of each chunk of 4096 elements are summed in
float64, then the chunks are summed from first to last. The result, and with it every
clipped update, is then the same for any number of threads.

Source: Pascanu, Mikolov & Bengio, "On the difficulty of training recurrent neural
networks", 2013 (clipping by norm).
"""

import numpy as np

CHUNK = 4096


def gradient_norm(grads):
    """Return the Euclidean norm of a flat array of any float dtype, as a float."""
    return norm_of(sums_of_squares(grads))


def sums_of_squares(grads):
    """Return the sum of the squares of each chunk, (n_chunks,) float64."""
    chunks = (grads[start : start + CHUNK].astype(np.float64) for start in range(0, len(grads), CHUNK))
    return np.array([np.dot(chunk, chunk) for chunk in chunks], np.float64)


def norm_of(sums):
    """Return the norm of the array whose chunks have these sums of squares, a float."""
    # cumsum() adds from first to last; sum() would add pairs.
    return float(np.sqrt(np.cumsum(sums)[-1])) if len(sums) else 0.0
