"""The Kullback-Leibler divergence of the policy from the reference: estimated from samples, and exactly.

With samples from pi and l = log ref - log pi of each: k1 = -l and k3 = exp(l) - 1 - l both have the mean KL(pi | ref);
k1 may be negative, k3 never is. Along a response the exact divergence is a sum over its tokens of one between two
distributions over the vocabulary, which is cheap at this size and never negative.

Source: Schulman, "Approximating KL divergence", 2020.
"""

import numpy as np

from npllm.model import GPT
from npllm.rlhf.sequences import ROWS_AT_ONCE, Sequences


def exact_kl(policy: GPT, reference: GPT, sequences: Sequences, temperature: float = 1.0) -> float:
    """Nats per response: the mean over rows of the sum over tokens of sum_v pi(v) (log pi(v) - log ref(v))."""
    total = 0.0
    for first in range(0, len(sequences.tokens), ROWS_AT_ONCE):
        tokens, targets, _ = (array[first : first + ROWS_AT_ONCE] for array in sequences)
        inside = targets.reshape(-1) >= 0
        ours, theirs = (log_softmax(model.token_logits(tokens, inside) / temperature) for model in (policy, reference))
        total += float((np.exp(ours) * (ours - theirs)).sum(dtype=np.float64))
    return total / len(sequences.tokens)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
