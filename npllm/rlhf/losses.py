"""The losses of the reward model, DPO and PPO on plain arrays, each with its gradient.

Every function returns the loss and its gradients with respect to the outputs of a
model: rewards, log-probabilities or values. The model's backward pass continues from
there.
"""

from typing import NamedTuple

import numpy as np


def sigmoid(x):
    r"""Return $1 / (1 + \exp(-x))$, computed without overflow."""
    return np.exp(-np.logaddexp(0.0, -x))


def bradley_terry(chosen, rejected, n_pairs=None):
    r"""Reward model: the mean over pairs of $-\log \sigma(r_{chosen} - r_{rejected})$.

    With $z = r_{chosen} - r_{rejected}$ the gradient of one pair is

    $$
    dz = -\partial \log \sigma(z) / \partial z = \sigma(z) - 1 = -\sigma(-z)
    $$

    So a pair that is ranked rightly by a wide margin has almost no gradient.

    chosen, rejected: (P,) rewards. n_pairs: the number of pairs in the whole batch, if
    these are a micro-batch of it. Returns loss, dchosen, drejected; the gradients are
    (P,).

    Source: Bradley & Terry, "Rank analysis of incomplete block designs", 1952; Stiennon
    et al., "Learning to summarize from human feedback", 2020, equation 1.
    """
    z, n_pairs = chosen - rejected, n_pairs or len(chosen)
    dz = -sigmoid(-z) / n_pairs
    return float(np.logaddexp(0.0, -z).sum()) / n_pairs, dz, -dz


def direct_preference(chosen, rejected, reference_chosen, reference_rejected, beta, n_pairs=None):
    r"""DPO: the mean over pairs of $-\log \sigma(r_{chosen} - r_{rejected})$.

    The implicit reward of a response is

    $$
    r = \beta (\log \pi - \log ref)
    $$

    It is the reward for which $\pi$ would be the optimal policy, up to a constant for
    each prompt.

    chosen, rejected: (P,), $\log \pi$, summed over the tokens of each response.
    reference_chosen, reference_rejected: (P,), $\log ref$, summed likewise. n_pairs:
    the number of pairs in the whole batch, if these are a micro-batch of it. Returns
    loss, dchosen, drejected; the gradients are (P,).

    Source: Rafailov et al., "Direct preference optimization", 2023, equation 7.
    """
    chosen, rejected = beta * (chosen - reference_chosen), beta * (rejected - reference_rejected)
    loss, dchosen, drejected = bradley_terry(chosen, rejected, n_pairs)
    return loss, beta * dchosen, beta * drejected


class PolicyLoss(NamedTuple):
    r"""What `clipped_policy` returns for n tokens.

    loss: the sum over the tokens, divided by n_tokens. dlog_probability: (n,), its
    gradient. ratio: (n,), $\pi / \pi_{old}$. clipped: (n,) bool, the tokens whose
    gradient is 0 because of the clip.
    """

    loss: float
    dlog_probability: np.ndarray
    ratio: np.ndarray
    clipped: np.ndarray


def clipped_policy(log_probability, old_log_probability, advantage, clip, n_tokens) -> PolicyLoss:
    r"""PPO's policy loss: the larger of two terms, summed over the tokens.

    $$
    loss = \sum_t \max(-A_t \rho_t, -A_t clip(\rho_t, 1 - e, 1 + e)) / n_tokens
    $$

    $\rho = \pi / \pi_{old}$, so $\partial \rho / \partial \log \pi = \rho$. The clipped
    term is larger only where $\rho$ has passed the clip in the direction that A
    rewards. It is constant there, so the gradient is 0. Elsewhere the gradient is that
    of $-A \rho$.

    log_probability, old_log_probability, advantage: (n,). clip: e. n_tokens: the number
    of tokens in the whole batch, of which these may be a part.

    Source: Schulman et al., "Proximal policy optimization algorithms", 2017,
    equation 7.
    """
    ratio = np.exp(log_probability - old_log_probability)
    unclipped, limited = -advantage * ratio, -advantage * np.clip(ratio, 1.0 - clip, 1.0 + clip)
    clipped = limited > unclipped
    gradient = np.where(clipped, 0.0, unclipped) / n_tokens
    return PolicyLoss(float(np.maximum(unclipped, limited).sum()) / n_tokens, gradient, ratio, clipped)


class ValueLoss(NamedTuple):
    """What `clipped_value` returns for n tokens.

    loss: the sum over the tokens, divided by n_tokens. dvalue: (n,), its gradient.
    clipped: (n,) bool, the tokens whose clipped value has the larger error.
    """

    loss: float
    dvalue: np.ndarray
    clipped: np.ndarray


def clipped_value(value, old_value, target, clip, n_tokens) -> ValueLoss:
    r"""PPO's value loss: the larger of two squared errors, summed over the tokens.

    $$
    loss = \sum_t \max((V_t - R_t)^2, (V_{clipped,t} - R_t)^2) / (2 n_tokens)
    V_{clipped} = V_{old} + clip(V - V_{old}, -e, e)
    $$

    The gradient is that of the larger of the two errors. If that is the clipped one,
    and V is further than e from $V_{old}$, the gradient is 0.

    value, old_value, target: (n,), which are V, $V_{old}$ and R. clip: e. n_tokens: the
    number of tokens in the whole batch, of which these may be a part.

    Source: OpenAI baselines, ppo2; Ziegler et al., "Fine-tuning language models from
    human preferences", 2019.
    """
    limited = old_value + np.clip(value - old_value, -clip, clip)
    error, limited_error = value - target, limited - target
    clipped = limited_error**2 > error**2
    inside = np.abs(value - old_value) <= clip
    gradient = np.where(clipped, np.where(inside, limited_error, 0.0), error) / n_tokens
    loss = 0.5 * float(np.maximum(error**2, limited_error**2).sum()) / n_tokens
    return ValueLoss(loss, gradient, clipped)
