"""The last layer as a policy: the log-probability of a chosen token, and the entropy.

Forward, for the row n with the chosen token t[n]:

    z[n,v] = sum_c x[n,c] W[v,c]                      logits
    lse[n] = log sum_v exp z[n,v]                     log of the softmax's denominator
    log p[n,v] = z[n,v] - lse[n]
    log_probability[n] = log p[n,t[n]]                0 where t[n] = -1
    entropy[n] = -sum_v p[n,v] log p[n,v]             in nats; 0 where t[n] = -1
               = lse[n] - sum_v p[n,v] z[n,v]         because a row of p sums to 1

The entropy is between 0 and log V. z - max z in place of z changes nothing. exp then
cannot overflow, and neither term of the entropy is ever negative.

Backward. For the softmax, dp[j]/dz[v] = p[j] ([j = v] - p[v]) and dlse/dz[v] = p[v].
So, for one row,

    d log_probability / dz[v] = [v = t] - p[v]
    d entropy / dz[v] = p[v] - p[v] - sum_j z[j] p[j] ([j = v] - p[v])
                      = -p[v] (z[v] - sum_j p[j] z[j])
                      = -p[v] (log p[v] + entropy)

The three terms of the second line come from lse, from z itself and from p. The last
line uses z = log p + lse and sum p z = lse - entropy. Together:

    dz[n,v] = dlog_probability[n] ([v = t[n]] - p[n,v])
              - dentropy[n] p[n,v] (log p[n,v] + entropy[n])
    dx = dz @ W                 dW = dz.T @ x

The surprise of a token is -log p, and the entropy is the mean surprise. A step along
the entropy's gradient takes probability from tokens whose surprise is below the mean.
In both terms the row of dz sums to zero: probability taken from one token is given to
others.

`lm_head_loss` is the case log_probability = -nll, without an entropy. Here the gradient
of each row comes from outside: a policy gradient multiplies it by the advantage of the
chosen token.

Why the cache holds lse and the entropy only: the backward computes the logits again, as
in `lm_head_loss`. A kernel can then work on one chunk of rows at a time.

Source: Williams & Peng, "Function optimization using connectionist reinforcement
learning algorithms", 1991 (the entropy); Schulman et al., "Proximal policy optimization
algorithms", 2017, equation 9.
"""

from typing import NamedTuple

import numpy as np

from npllm.reference.lm_head_loss import IGNORED


class LMHeadPolicyCache(NamedTuple):
    x: np.ndarray  # (N, C)
    targets: np.ndarray  # (N,)
    lse: np.ndarray  # (N,)
    entropy: np.ndarray  # (N,)


def lm_head_policy_forward(x, weight, targets):
    """Return each row's log-probability of its target and its entropy, in nats.

    x: (N, C). weight: (V, C), as in `lm_head_loss_forward`. targets: (N,) integers
    below V, or -1 = ignored.

    Returns log_probability and entropy, (N,) each, both 0 where ignored, and the cache.
    """
    logits = x @ weight.T
    shifted = logits - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    total = exponentials.sum(axis=1)
    of_target = np.take_along_axis(shifted, np.maximum(targets, 0)[:, None], axis=1)[:, 0]
    chosen, zero = targets != IGNORED, x.dtype.type(0)
    log_probability = np.where(chosen, of_target - np.log(total), zero)
    entropy = np.where(chosen, np.log(total) - (exponentials * shifted).sum(axis=1) / total, zero)
    lse = logits.max(axis=1) + np.log(total)
    return log_probability, entropy, LMHeadPolicyCache(x, targets, lse, entropy)


def lm_head_policy_backward(dlog_probability, dentropy, cache, weight, dweight):
    """Return dx, (N, C), and add to dweight, (V, C).

    dlog_probability, dentropy: (N,), the gradients of each row's outputs. dentropy:
    None = zeros.
    """
    x, targets, lse, entropy = cache
    if dentropy is None:
        dentropy = np.zeros_like(dlog_probability)
    log_p = x @ weight.T - lse[:, None]
    dlogits = -np.exp(log_p) * (dlog_probability[:, None] + dentropy[:, None] * (log_p + entropy[:, None]))
    rows = np.flatnonzero(targets != IGNORED)
    dlogits[rows, targets[rows]] += dlog_probability[rows]
    dlogits[targets == IGNORED] = 0.0
    dweight += dlogits.T @ x
    return dlogits @ weight
