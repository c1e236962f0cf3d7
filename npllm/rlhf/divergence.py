r"""The Kullback-Leibler divergence of the policy from the reference, $KL(\pi | ref)$.

There are two ways to measure it:

- Estimates from samples. A sample of $\pi$ has $l = \log ref - \log \pi$. Both
  $k_1 = -l$ and $k_3 = \exp(l) - 1 - l$ have the mean $KL(\pi | ref)$. $k_1$ can be
  negative, $k_3$ cannot.
- The exact divergence between the distributions of the next token, over the whole
  vocabulary. The divergence of a response is the sum over its tokens. It is never
  negative, and it is cheap with a small vocabulary.

`ppo.py` logs $k_1$ and the exact divergence of each rollout. `ppo_gradient.py` logs
$k_3$ between the policy that wrote the rollout and the present one.

Source: Schulman, "Approximating KL divergence", 2020.
"""

from typing import NamedTuple

import numpy as np

from npllm.model import GPT
from npllm.reference.lm_head_loss import IGNORED
from npllm.rlhf.sequences import Sequences, in_parts, response_log_probability

DISTRIBUTIONS_AT_ONCE = 64  # a comparison makes several copies of them in float64


class Comparison(NamedTuple):
    """A policy and the reference on the same B responses.

    log_probability, reference: (B, W) float64, the log-probability of each token under
    the policy and under the reference; 0 outside the response. kl: (B,) float64, the
    exact KL divergence in nats per response.
    """

    log_probability: np.ndarray
    reference: np.ndarray
    kl: np.ndarray


def compare(policy: GPT, reference: GPT, sequences: Sequences, temperature: float = 1.0) -> Comparison:
    """Return the log-probabilities under both models, and their exact divergence.

    The logits of both are divided by the temperature.
    """
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
    """Return the exact KL divergence in nats per response, averaged over responses."""
    return float(compare(policy, reference, sequences, temperature).kl.mean())


def in_chunks(rows: np.ndarray) -> list[np.ndarray]:
    """Split the rows into parts of at most DISTRIBUTIONS_AT_ONCE rows.

    No rows give one empty part.
    """
    return np.split(rows, range(DISTRIBUTIONS_AT_ONCE, len(rows), DISTRIBUTIONS_AT_ONCE))


def comparison_bytes(vocab_size: int, tokens: int, itemsize: int) -> int:
    """Return the bytes that `compare` takes for a pass with `tokens` response tokens.

    They are the logits of both models, and six float64 copies of DISTRIBUTIONS_AT_ONCE
    rows of logits. itemsize: bytes of a logit.
    """
    return vocab_size * (2 * itemsize * tokens + 6 * 8 * min(tokens, DISTRIBUTIONS_AT_ONCE))


def categorical_kl(logits: np.ndarray, reference_logits: np.ndarray) -> np.ndarray:
    r"""Return $\sum_v p_v (\log p_v - \log q_v)$ of each row, (n,) float64, at least 0.

    logits, reference_logits: (n, V), those of p and those of q.
    """
    ours, theirs = (log_softmax(array.astype(np.float64)) for array in (logits, reference_logits))
    divergence = (np.exp(ours) * (ours - theirs)).sum(axis=1)
    return np.maximum(divergence, 0.0)  # rounding can leave -1e-16 where p and q are almost equal


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return the log-softmax over the last axis, in the shape of the logits."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
