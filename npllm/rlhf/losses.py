"""The losses of learning from preferences and rewards, each with its gradient, on plain arrays.

Every function returns the loss and the gradients of its first arguments. What produces those (log-probabilities of a
policy, values of a critic, rewards) is differentiated by the model.
"""

from typing import NamedTuple

import numpy as np


def sigmoid(x):
    """1 / (1 + exp(-x)), without overflow."""
    return np.exp(-np.logaddexp(0.0, -x))


def bradley_terry(chosen, rejected, n_pairs=None):
    """Reward model: -log sigma(r_chosen - r_rejected), the mean over pairs.

    With z = r_chosen - r_rejected, d(-log sigma(z))/dz = sigma(z) - 1 = -sigma(-z): a pair that is ranked rightly by a
    wide margin pulls no more. chosen, rejected: (P,) rewards. n_pairs: of the whole batch, when these are a
    micro-batch. Returns loss, dchosen, drejected.

    Source: Bradley & Terry, "Rank analysis of incomplete block designs", 1952; Stiennon et al., 2020, equation 1.
    """
    z, n_pairs = chosen - rejected, n_pairs or len(chosen)
    dz = -sigmoid(-z) / n_pairs
    return float(np.logaddexp(0.0, -z).sum()) / n_pairs, dz, -dz


def direct_preference(chosen, rejected, reference_chosen, reference_rejected, beta, n_pairs=None):
    """DPO: -log sigma(beta [(log pi - log ref)(chosen) - (log pi - log ref)(rejected)]), the mean over pairs.

    It is Bradley-Terry with the reward that the policy itself is optimal for, beta log(pi / ref). All: (P,), sums of
    log-probabilities over a response. n_pairs: of the whole batch, when these are a micro-batch. Returns loss, dchosen,
    drejected.

    Source: Rafailov et al., "Direct preference optimization", 2023, equation 7.
    """
    chosen, rejected = beta * (chosen - reference_chosen), beta * (rejected - reference_rejected)
    loss, dchosen, drejected = bradley_terry(chosen, rejected, n_pairs)
    return loss, beta * dchosen, beta * drejected


class PolicyLoss(NamedTuple):
    """loss: of the tokens given. dlog_probability: (n,). ratio: (n,). clipped: (n,), where no gradient is left."""

    loss: float
    dlog_probability: np.ndarray
    ratio: np.ndarray
    clipped: np.ndarray


def clipped_policy(log_probability, old_log_probability, advantage, clip, n_tokens) -> PolicyLoss:
    """PPO's policy loss: sum of max(-A rho, -A clip(rho, 1 - e, 1 + e)) / n_tokens, with rho = pi / pi_old.

    d rho / d log pi = rho. The maximum takes the unclipped side unless the clipped one is larger: that is where rho has
    gone beyond the clip in the direction that A rewards, and there the gradient is zero. All arrays: (n,). n_tokens: of
    the whole batch, when these are a part of it.

    Source: Schulman et al., "Proximal policy optimization algorithms", 2017, equation 7.
    """
    ratio = np.exp(log_probability - old_log_probability)
    unclipped, limited = -advantage * ratio, -advantage * np.clip(ratio, 1.0 - clip, 1.0 + clip)
    clipped = limited > unclipped
    gradient = np.where(clipped, 0.0, unclipped) / n_tokens
    return PolicyLoss(float(np.maximum(unclipped, limited).sum()) / n_tokens, gradient, ratio, clipped)


class ValueLoss(NamedTuple):
    """loss: of the tokens given. dvalue: (n,). clipped: (n,), where the clipped value gave the larger error."""

    loss: float
    dvalue: np.ndarray
    clipped: np.ndarray


def clipped_value(value, old_value, target, clip, n_tokens) -> ValueLoss:
    """PPO's value loss: sum of max((V - R)^2, (V_old + clip(V - V_old, -e, e) - R)^2) / (2 n_tokens).

    The gradient is that of the larger error: V - R, or the clipped value's, which is zero where it is at its limit. All
    arrays: (n,).

    Source: OpenAI baselines, ppo2; Ziegler et al., "Fine-tuning language models from human preferences", 2019.
    """
    limited = old_value + np.clip(value - old_value, -clip, clip)
    error, limited_error = value - target, limited - target
    clipped = limited_error**2 > error**2
    inside = np.abs(value - old_value) <= clip
    gradient = np.where(clipped, np.where(inside, limited_error, 0.0), error) / n_tokens
    loss = 0.5 * float(np.maximum(error**2, limited_error**2).sum()) / n_tokens
    return ValueLoss(loss, gradient, clipped)
