"""The last layer as a policy, one chunk of rows at a time.

See `npllm.reference.lm_head_policy` for the mathematics.
"""

import numpy as np
from numba import prange

from npllm.kernels.jit import parallel, part, summing
from npllm.kernels.logit_chunks import check_targets, chunks_of_logits, multiply_gradient
from npllm.kernels.row_softmax import row_maximum
from npllm.kernels.vector_math import exp
from npllm.reference.lm_head_loss import IGNORED
from npllm.reference.lm_head_policy import LMHeadPolicyCache


def lm_head_policy_forward(x, weight, targets, *, empty=np.empty):
    """Return each row's log-probability of its target and its entropy, in nats.

    x: (N, C). weight: (V, C), as in `lm_head_loss_forward`. targets: (N,) integers
    below V, or -1 = ignored.

    Returns log_probability and entropy, (N,) each, both 0 where ignored, and the cache.
    Raises IndexError for any other target.
    """
    check_targets(targets, len(weight))
    log_probability, entropy, lse = (empty(targets.shape, x.dtype) for _ in range(3))
    for rows, logits, _ in chunks_of_logits(x, weight, empty):
        _policy_rows(logits, targets[rows], log_probability[rows], entropy[rows], lse[rows])
    return log_probability, entropy, LMHeadPolicyCache(x, targets, lse, entropy)


def lm_head_policy_backward(dlog_probability, dentropy, cache, weight, dweight, *, empty=np.empty):
    """Return dx, (N, C), and add to dweight, (V, C).

    dlog_probability, dentropy: (N,), the gradients of each row's outputs. dentropy:
    None = zeros.
    """
    x, targets, lse, entropy = cache
    if dentropy is None:
        dentropy = empty(targets.shape, x.dtype)
        dentropy[:] = 0.0
    dx = empty(x.shape, x.dtype)
    for rows, logits, factors in chunks_of_logits(x, weight, empty):
        _gradient_rows(logits, targets[rows], lse[rows], entropy[rows], dlog_probability[rows], dentropy[rows])
        multiply_gradient(logits, factors, x[rows], weight, dweight, dx[rows])
    return dx


@parallel
def _policy_rows(logits, targets, log_probability, entropy, lse):
    """Fill log_probability, entropy and lse, (n,) each, from logits, (n, V)."""
    for n in prange(len(logits)):
        _policy_row(n, logits[n], targets[n], log_probability, entropy, lse)


@part
def _policy_row(n, row, target, log_probability, entropy, lse):
    if target == IGNORED:
        log_probability[n] = entropy[n] = lse[n] = row.dtype.type(0.0)
        return
    maximum = row_maximum(row)
    total, weighted = _row_sums(row, maximum)
    log_total = np.log(total)
    lse[n] = maximum + log_total
    log_probability[n] = row[target] - maximum - log_total
    entropy[n] = log_total - weighted / total


@summing
def _row_sums(row, maximum):
    """Return the sums of e and of e log e over the row; e = exp(row - maximum)."""
    total = weighted = row.dtype.type(0.0)
    for j in range(len(row)):
        shifted = row[j] - maximum
        exponential = exp(shifted)
        total += exponential
        weighted += exponential * shifted
    return total, weighted


@parallel
def _gradient_rows(logits, targets, lse, entropy, dlog_probability, dentropy):
    """Replace logits, (n, V), by their gradient."""
    for n in prange(len(logits)):
        _gradient_row(logits[n], targets[n], lse[n], entropy[n], dlog_probability[n], dentropy[n])


@part
def _gradient_row(row, target, lse, entropy, dlog_probability, dentropy):
    if target == IGNORED:
        row[:] = row.dtype.type(0.0)
        return
    for j in range(len(row)):
        log_p = row[j] - lse
        row[j] = -exp(log_p) * (dlog_probability + dentropy * (log_p + entropy))
    row[target] += dlog_probability
