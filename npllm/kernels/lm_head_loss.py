"""The last layer and the loss, one chunk of rows at a time.

See `npllm.reference.lm_head_loss` for the mathematics. Training reads each of the N·V
logits once and never holds all of them (`logit_chunks`).
"""

import numpy as np
from numba import prange

from npllm.kernels.jit import parallel, part
from npllm.kernels.logit_chunks import check_targets, chunks_of_logits, multiply_gradient
from npllm.kernels.row_softmax import row_exponentials, row_maximum
from npllm.kernels.vector_math import exp
from npllm.reference.lm_head_loss import IGNORED, LMHeadLossCache


def lm_head_loss_forward(x, weight, targets, *, empty=np.empty):
    """Return the negative log-likelihood of each row's target, in nats.

    x: (N, C). weight: (V, C), one row per token, so that a tied head is the embedding
    table itself; it may be bfloat16, as in `linear_forward`. targets: (N,) integers
    below V, or -1 = ignored.

    Returns nll, (N,), and the cache. Raises IndexError for any other target.
    """
    check_targets(targets, len(weight))
    nll, lse = empty(targets.shape, x.dtype), empty(targets.shape, x.dtype)
    for rows, logits, _ in chunks_of_logits(x, weight, empty):
        _softmax_rows(logits, targets[rows], nll[rows], lse[rows], None)
    return nll, LMHeadLossCache(x, targets, lse)


def lm_head_loss_backward(dnll, cache, weight, dweight, *, empty=np.empty):
    """Return dx, (N, C), and add to dweight, (V, C).

    dnll: (N,), the gradient of each row's nll.
    """
    x, targets, lse = cache
    dx = empty(x.shape, x.dtype)
    for rows, logits, factors in chunks_of_logits(x, weight, empty):
        _gradient_rows(logits, targets[rows], lse[rows], dnll[rows])
        multiply_gradient(logits, factors, x[rows], weight, dweight, dx[rows])
    return dx


def lm_head_loss_and_grad(x, weight, targets, n_targets, dweight, *, empty=np.empty):
    """Return the mean loss and its gradient, with one pass over the logits.

    Returns sum(nll) / n_targets as a float, and dx, (N, C). Adds to dweight, (V, C).
    Raises IndexError for a target that is neither a token nor -1.
    """
    check_targets(targets, len(weight))
    nll, dx = empty(targets.shape, x.dtype), empty(x.shape, x.dtype)
    for rows, logits, factors in chunks_of_logits(x, weight, empty):
        _softmax_rows(logits, targets[rows], nll[rows], None, 1.0 / n_targets)
        multiply_gradient(logits, factors, x[rows], weight, dweight, dx[rows])
    return float(nll.sum(dtype=np.float64)) / n_targets, dx


@parallel
def _softmax_rows(logits, targets, nll, lse, dnll):
    """Fill nll and lse, (n,) each, from logits, (n, V).

    Where dnll, the gradient of each row's nll, is given, the gradient of the logits
    then replaces them. lse and dnll may be None.
    """
    for n in prange(len(logits)):
        _softmax_row(n, logits[n], targets[n], nll, lse, dnll)


@part
def _softmax_row(n, row, target, nll, lse, dnll):
    real = row.dtype.type
    if target == IGNORED:
        row[:], nll[n] = real(0.0), real(0.0)
        if lse is not None:
            lse[n] = real(0.0)
        return
    of_target, maximum = row[target], row_maximum(row)
    total = row_exponentials(row, maximum)
    lse_n = maximum + np.log(total)
    nll[n] = lse_n - of_target
    if lse is not None:
        lse[n] = lse_n
    if dnll is not None:
        factor = real(dnll) / total
        for j in range(len(row)):
            row[j] *= factor
        row[target] -= real(dnll)


@parallel
def _gradient_rows(logits, targets, lse, dnll):
    """Replace logits, (n, V), by their gradient."""
    for n in prange(len(logits)):
        _gradient_row(logits[n], targets[n], lse[n], dnll[n])


@part
def _gradient_row(row, target, lse, dnll):
    if target == IGNORED:
        row[:] = row.dtype.type(0.0)
        return
    for j in range(len(row)):
        row[j] = dnll * exp(row[j] - lse)
    row[target] -= dnll
