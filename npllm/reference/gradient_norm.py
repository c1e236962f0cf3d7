"""The length of the whole gradient, for clipping.

    norm = sqrt(sum_i g[i]^2)

The sum's order is fixed: each chunk of 4096 elements by itself in float64, then the chunks from first to last. So the
result, and with it every clipped update, is the same for any number of threads.

Source: Pascanu, Mikolov & Bengio, "On the difficulty of training recurrent neural networks", 2013 (clipping by norm).
"""

import numpy as np

CHUNK = 4096


def gradient_norm(grads):
    """Euclidean norm of a flat array of any float dtype, as a float."""
    total = 0.0
    for start in range(0, len(grads), CHUNK):
        chunk = grads[start : start + CHUNK].astype(np.float64)
        total += float(np.dot(chunk, chunk))  # not sum(): from Python 3.12 on it adds floats with compensation
    return float(np.sqrt(total))
