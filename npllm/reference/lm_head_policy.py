r"""The last layer as a policy: the log-probability of a chosen token, and the entropy.

Forward, for the row n with the chosen token $t_n$:

$$
z_{n,v} = \sum_c x_{n,c} W_{v,c}               % logits
lse_n = \log \sum_v \exp z_{n,v}               % log of the softmax's denominator
\log p_{n,v} = z_{n,v} - lse_n
log_probability_n = \log p_{n,t_n}             % 0 where $t_n = -1$
entropy_n = -\sum_v p_{n,v} \log p_{n,v}       % in nats; 0 where $t_n = -1$
= lse_n - \sum_v p_{n,v} z_{n,v}               % because a row of p sums to 1
$$

The entropy is between 0 and $\log V$. $z - \max z$ in place of z changes nothing. exp
then cannot overflow, and neither term of the entropy is ever negative.

Backward. For the softmax, $\partial p_j / \partial z_v = p_j ([j = v] - p_v)$ and
$\partial lse / \partial z_v = p_v$. So, for one row,

$$
\partial log_probability / \partial z_v = [v = t] - p_v
\partial entropy / \partial z_v = p_v - p_v - \sum_j z_j p_j ([j = v] - p_v)
= -p_v (z_v - \sum_j p_j z_j)
= -p_v (\log p_v + entropy)
$$

The three terms of the second line come from lse, from z itself and from p. The last
line uses $z = \log p + lse$ and $\sum_v p_v z_v = lse - entropy$. Together:

$$
dz_{n,v} = dlog_probability_n ([v = t_n] - p_{n,v})
- dentropy_n p_{n,v} (\log p_{n,v} + entropy_n)
dx = dz W
dW = dz^T x
$$

The surprise of a token is $-\log p$, and the entropy is the mean surprise. A step along
the entropy's gradient takes probability from tokens whose surprise is below the mean.
In both terms the row of dz sums to zero: probability taken from one token is given to
others.

`lm_head_loss` is the case $log_probability = -nll$, without an entropy. Here the
gradient of each row comes from outside: a policy gradient multiplies it by the
advantage of the chosen token.

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
