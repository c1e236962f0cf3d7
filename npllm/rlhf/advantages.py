"""Advantages: how much better each token of a response was than expected.

They are computed from the score of each whole response. A response is one row of T
columns. `mask`, (B, T) bool, is true in the columns that predict a token of the
response. Values outside the mask are not used, and the results are 0 there.
"""

import numpy as np


def token_rewards(scores, log_probability, reference_log_probability, mask, beta):
    r"""Return the reward of each token, (B, T).

    $$
    r_t = -\beta (\log \pi_t - \log ref_t)
    $$

    The last token of a response gets its score in addition.

    scores: (B,). log_probability, reference_log_probability, mask: (B, T).

    Source: Ziegler et al., "Fine-tuning language models from human preferences", 2019,
    equation 2, which is split into tokens here.
    """
    rewards = np.where(mask, -beta * (log_probability - reference_log_probability), 0.0)
    rewards[np.arange(len(mask)), last_columns(mask)] += scores
    return rewards


def last_columns(mask):
    """Return the column that predicts each response's last token, (B,)."""
    return mask.shape[1] - 1 - np.argmax(mask[:, ::-1], axis=1)


def generalised_advantages(rewards, values, mask, gamma, lam):
    r"""Return the advantages of GAE and the returns $A + V$, both (B, T).

    $$
    \delta_t = r_t + \gamma V_{t+1} - V_t
    A_t = \delta_t + \gamma \lambda A_{t+1}
    $$

    After the last token of a response, V and A are 0.

    rewards, values, mask: (B, T). values[:, t]: of the state before token t.

    Source: Schulman et al., "High-dimensional continuous control using generalized
    advantage estimation", 2015.
    """
    advantages = np.zeros(rewards.shape)
    following, next_value = np.zeros(len(rewards)), np.zeros(len(rewards))
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        following = np.where(mask[:, t], delta + gamma * lam * following, 0.0)
        next_value = np.where(mask[:, t], values[:, t], 0.0)
        advantages[:, t] = following
    return advantages, np.where(mask, advantages + values, 0.0)


def whitened(advantages, mask):
    r"""Return the advantages with mean 0 and variance 1, (B, T).

    $$
    A = (A - mean) / \sqrt{variance + 10^{-8}}
    $$

    Mean and variance are those of the tokens of the mask. The variance is the biased
    one: the sum of squares is divided by the number of tokens.
    """
    tokens = advantages[mask]
    mean, variance = tokens.mean(), tokens.var()
    return np.where(mask, (advantages - mean) / np.sqrt(variance + 1e-8), 0.0)


def leave_one_out(returns, group):
    """RLOO: return the advantage of each response, (B,).

    It is the return of the response minus the mean return of the other responses to the
    same prompt.

    returns: (B,). The responses to one prompt are `group` neighbours.

    Source: Ahmadian et al., "Back to basics: revisiting REINFORCE-style optimization
    for learning from human feedback in LLMs", 2024.
    """
    grouped = returns.reshape(-1, group)
    return ((grouped - grouped.mean(axis=1, keepdims=True)) * (group / (group - 1))).reshape(-1)


def group_relative(returns, group):
    """GRPO: return the advantage of each response, (B,).

    It is the return of the response minus the mean return of all responses to the same
    prompt, divided by their standard deviation + 1e-6. If all of them have the same
    return, the advantages are 0.

    returns: (B,). The responses to one prompt are `group` neighbours.

    Source: Shao et al., "DeepSeekMath", 2024, section 4.1.
    """
    grouped = returns.reshape(-1, group)
    deviation = grouped.std(axis=1, keepdims=True)
    return ((grouped - grouped.mean(axis=1, keepdims=True)) / (deviation + 1e-6)).reshape(-1)
