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
    total = 0.0
    for start in range(0, len(grads), CHUNK):
        chunk = grads[start : start + CHUNK].astype(np.float64)
        # Python's sum() would not do: from 3.12 on it adds floats with compensation.
        total += float(np.dot(chunk, chunk))
    return float(np.sqrt(total))
