"""How much better than expected: advantages of tokens, from the scores of whole responses.

A response is a row of columns; `mask`, (B, T), says which of them are its tokens (each is named by the column that
predicts it). Nothing outside the mask is read, and there the results are zero.
"""

import numpy as np


def token_rewards(scores, log_probability, reference_log_probability, mask, beta):
    """r_t = -beta (log pi_t - log ref_t), and the score on top of it at the last token, which is the stop token.

    scores: (B,). The others: (B, T). Returns (B, T).
    (Ziegler et al., "Fine-tuning language models from human preferences", 2019, equation 2, token by token.)
    """
    rewards = np.where(mask, -beta * (log_probability - reference_log_probability), 0.0)
    rewards[np.arange(len(mask)), last_columns(mask)] += scores
    return rewards


def last_columns(mask):
    """The column of each response's last token, (B,)."""
    return mask.shape[1] - 1 - np.argmax(mask[:, ::-1], axis=1)


def generalised_advantages(rewards, values, mask, gamma, lam):
    """GAE: delta_t = r_t + gamma V_{t+1} - V_t and A_t = delta_t + gamma lambda A_{t+1}, with V = A = 0 at the end.

    values[t] is of the state before token t. Returns advantages and returns A + V, both (B, T).
    (Schulman et al., "High-dimensional continuous control using generalized advantage estimation", 2015.)
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
    """Mean 0 and variance 1 over the tokens of the mask: (A - mean) / sqrt(var + 1e-8), with the biased variance."""
    tokens = advantages[mask]
    mean, variance = tokens.mean(), tokens.var()
    return np.where(mask, (advantages - mean) / np.sqrt(variance + 1e-8), 0.0)


def leave_one_out(returns, group):
    """RLOO: each response against the mean of the others to the same prompt. returns: (B,), groups in a row; (B,).

    (Ahmadian et al., "Back to basics: revisiting REINFORCE-style optimization for learning from human feedback", 2024.)
    """
    grouped = returns.reshape(-1, group)
    return ((grouped - grouped.mean(axis=1, keepdims=True)) * (group / (group - 1))).reshape(-1)


def group_relative(returns, group):
    """GRPO: each response against the mean of its prompt's, in standard deviations. returns: (B,), groups in a row.

    A group of equal returns says nothing: its advantages are 0.
    (Shao et al., "DeepSeekMath", 2024, section 4.1.)
    """
    grouped = returns.reshape(-1, group)
    deviation = grouped.std(axis=1, keepdims=True)
    return ((grouped - grouped.mean(axis=1, keepdims=True)) / (deviation + 1e-6)).reshape(-1)
