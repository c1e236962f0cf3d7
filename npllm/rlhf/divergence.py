"""The Kullback-Leibler divergence of the policy from the reference: estimated from samples, and exactly.

With samples from pi and l = log ref - log pi of each: k1 = -l and k3 = exp(l) - 1 - l both have the mean KL(pi | ref);
k1 may be negative, k3 never is. Along a response the exact divergence is a sum over its tokens of one between two
distributions over the vocabulary, which is cheap at this size and never negative.

Source: Schulman, "Approximating KL divergence", 2020.
"""

from typing import NamedTuple

import numpy as np

from npllm.model import GPT
from npllm.reference.lm_head_loss import IGNORED
from npllm.rlhf.sequences import Sequences, in_parts, response_log_probability

DISTRIBUTIONS_AT_ONCE = 64  # distributions in float64, of which a comparison makes several copies


class Comparison(NamedTuple):
    """Of a policy with the reference on responses. log_probability, reference: (B, W) float64, 0 outside the response.
    kl: (B,), exact, in nats per response."""

    log_probability: np.ndarray
    reference: np.ndarray
    kl: np.ndarray


def compare(policy: GPT, reference: GPT, sequences: Sequences, temperature: float = 1.0) -> Comparison:
    """What both say of each token of the responses, and how far apart they are."""
    parts = []
    for part in in_parts(sequences):
        inside = part.targets != IGNORED
        log_probabilities, logits = [], []
        for model in (policy, reference):
            hidden = model.hidden(part.tokens) * model.dtype.type(1.0 / temperature)
            log_probabilities.append(response_log_probability(model, hidden, part))
            logits.append(model.logits_of(hidden[inside.reshape(-1)]))
        kl = np.zeros(inside.shape)
        kl[inside] = np.concatenate([categorical_kl(*some) for some in zip(*map(in_chunks, logits), strict=True)])
        parts.append((*log_probabilities, kl.sum(axis=1)))
    return Comparison(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def exact_kl(policy: GPT, reference: GPT, sequences: Sequences, temperature: float = 1.0) -> float:
    """The mean over responses, in nats."""
    return float(compare(policy, reference, sequences, temperature).kl.mean())


def in_chunks(rows: np.ndarray) -> list[np.ndarray]:
    """DISTRIBUTIONS_AT_ONCE of the rows at a time; one empty part where there are none."""
    return np.split(rows, range(DISTRIBUTIONS_AT_ONCE, len(rows), DISTRIBUTIONS_AT_ONCE))


def comparison_bytes(vocab_size: int, tokens: int, itemsize: int) -> int:
    """What `compare` takes for rows with so many tokens of responses: the logits of both, six copies of some."""
    return vocab_size * (2 * itemsize * tokens + 6 * 8 * min(tokens, DISTRIBUTIONS_AT_ONCE))


def categorical_kl(logits: np.ndarray, reference_logits: np.ndarray) -> np.ndarray:
    """sum_v p(v) (log p(v) - log q(v)) for each row of logits, (n, V): (n,) float64, never negative."""
    ours, theirs = (log_softmax(array.astype(np.float64)) for array in (logits, reference_logits))
    divergence = (np.exp(ours) * (ours - theirs)).sum(axis=1)
    return np.maximum(divergence, 0.0)  # rounding would leave -1e-16 between near equals, and -1e-7 in float32


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
