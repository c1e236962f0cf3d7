r"""The last layer and the loss: logits over the vocabulary, then softmax cross-entropy.

Forward, for the row n with the target token $t_n$:

$$
z_{n,v} = \sum_c x_{n,c} W_{v,c}          % logits
lse_n = \log \sum_v \exp z_{n,v}          % log of the softmax's denominator
nll_n = lse_n - z_{n,t_n}                 % $-\log p$ of the target; 0 where $t_n = -1$
loss = \sum_n w_n nll_n                   % $w_n = 1 / n_targets$: the mean
$$

Backward. $\partial lse / \partial z_v$ is the softmax of z at v, which is called $p_v$.
So, with $dnll_n = w_n$,

$$
dz_{n,v} = dnll_n (p_{n,v} - [v = t_n])   % prediction minus target
dx = dz W
dW = dz^T x
$$

Each row of dz sums to zero: probability taken from one token is given to others.

Why the two are one operation: z is by far the largest array of the step (N·V; at
GPT-2's vocabulary 65 times the residual stream), but each of its rows is used once. A
kernel that works on one chunk of rows at a time never holds all of it. This is also why
the cache holds only lse, (N,): the backward computes the logits of a chunk again, and
$p = \exp(z - lse)$.

Why the caller gives the number of targets: with gradient accumulation the mean is over
the targets of the *whole* batch, which one micro-batch cannot know.

Source: Bridle, "Training stochastic model recognition algorithms as networks can lead
to maximum mutual information estimation of parameters", 1990.
"""

from typing import NamedTuple

import numpy as np

IGNORED = -1  # a target that the loss leaves out


class LMHeadLossCache(NamedTuple):
    x: np.ndarray  # (N, C)
    targets: np.ndarray  # (N,)
    lse: np.ndarray  # (N,)


def lm_head_loss_forward(x, weight, targets):
    """Return the negative log-likelihood of each row's target, in nats.

    x: (N, C). weight: (V, C), one row per token, so that a tied head is the embedding
    table itself. targets: (N,) integers below V, or -1 = ignored.

    Returns nll, (N,), and the cache.
    """
    logits = x @ weight.T
    maximum = logits.max(axis=1)
    lse = maximum + np.log(np.exp(logits - maximum[:, None]).sum(axis=1))
    of_target = np.take_along_axis(logits, np.maximum(targets, 0)[:, None], axis=1)[:, 0]
    return np.where(targets == IGNORED, x.dtype.type(0), lse - of_target), LMHeadLossCache(x, targets, lse)


def lm_head_loss_backward(dnll, cache, weight, dweight):
    """Return dx, (N, C), and add to dweight, (V, C).

    dnll: (N,), the gradient of each row's nll.
    """
    x, targets, lse = cache
    dlogits = np.exp(x @ weight.T - lse[:, None])
    rows = np.flatnonzero(targets != IGNORED)
    dlogits[rows, targets[rows]] -= 1.0
    dlogits *= np.where(targets == IGNORED, x.dtype.type(0), dnll)[:, None]
    dweight += dlogits.T @ x
    return dlogits @ weight


def lm_head_loss_and_grad(x, weight, targets, n_targets, dweight):
    r"""Return the mean loss and its gradient; a kernel needs one pass over the logits.

    Returns $\sum_n nll_n / n_targets$ as a float, and dx, (N, C). Adds to dweight,
    (V, C).
    """
    nll, cache = lm_head_loss_forward(x, weight, targets)
    dnll = np.full_like(nll, 1.0 / n_targets)
    return float(nll.sum(dtype=np.float64)) / n_targets, lm_head_loss_backward(dnll, cache, weight, dweight)
