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
    partials = [float(np.dot(chunk, chunk)) for chunk in _chunks(grads)]
    return float(np.sqrt(sum(partials)))


def _chunks(flat):
    return (flat[i : i + CHUNK].astype(np.float64) for i in range(0, len(flat), CHUNK))
