"""Chooses the next token from its logits."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from npllm.errors import ConfigError
from npllm.reference.random import random_words
from npllm.reference.random_streams import GENERATION


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the tokens of one text are chosen.

    repetition_penalty lowers the logits of tokens that occurred already. sample: the
    number of the text among those of the seed. `probabilities` describes the others.
    Raises ConfigError for a value outside its range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    sample: int = 0

    def __post_init__(self):
        if not self.temperature >= 0:
            raise ConfigError(f"temperature is {self.temperature}; set it to 0 (always the likeliest token) or above.")
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k is {self.top_k}; set it to at least 1.")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p}; set it above 0 and to at most 1.")
        if not 0 <= self.seed < 2**64:
            raise ConfigError(f"seed is {self.seed}; set it to at least 0 and below 2^64.")
        if not 0 <= self.min_p <= 1:
            raise ConfigError(f"min_p is {self.min_p}; set it to 0 (none is left out) or above, and to at most 1.")
        if not 0 < self.repetition_penalty < float("inf"):
            raise ConfigError(f"repetition_penalty is {self.repetition_penalty}; set it to 1 (none) or above.")
        if self.sample < 0:
            raise ConfigError(f"sample is {self.sample}; set it to at least 0.")

    def choose(self, logits: np.ndarray, n: int, seen: Sequence[int]) -> int:
        """Return the n-th token of the text. logits: (V,). seen: the tokens before it.

        It depends on nothing else but (seed, sample).
        """
        if self.repetition_penalty != 1.0:
            logits = penalised(logits, seen, self.repetition_penalty)
        word = random_words(1, seed=self.seed, step=n, stream=GENERATION, first=self.sample)[0]
        return choose_token(logits, word / 2.0**32, self.temperature, self.top_k, self.top_p, self.min_p)


def check_max_tokens(max_tokens: int) -> None:
    """Raise ConfigError for a negative number of tokens."""
    if max_tokens < 0:
        raise ConfigError(f"max_tokens is {max_tokens}; set it to at least 0.")


def penalised(logits, text: Sequence[int], penalty: float) -> np.ndarray:
    """Return the logits with those of the tokens in `text` lowered, (V,) float64.

    A logit above 0 is divided by the penalty, and one below 0 is multiplied by it.
    logits: (V,). penalty: above 0; 1 changes nothing. (Keskar et al., "CTRL: a
    conditional transformer language model for controllable generation", 2019, section
    4.1; this form, for logits of both signs, is that of most implementations.)
    """
    lowered = np.array(logits, np.float64)
    seen = np.unique(np.asarray(text, np.int64))
    lowered[seen] = np.where(lowered[seen] > 0, lowered[seen] / penalty, lowered[seen] * penalty)
    return lowered


def probabilities(
    logits, temperature: float, top_k: int | None = None, top_p: float = 1.0, min_p: float = 0.0
) -> np.ndarray:
    """Return the probabilities of the next token, (V,) float64.

    logits: (V,). temperature: above 0. top_k keeps the k likeliest tokens. top_p keeps
    the fewest tokens whose probabilities reach p (Holtzman et al., "The curious case of
    neural text degeneration", 2019). Of equally likely tokens, the lowest ids are kept.
    min_p keeps the tokens with at least min_p times the probability of the likeliest
    one (Nguyen et al., "Turning up the heat: min-p sampling for creative and coherent
    LLM outputs", 2024). They apply in this order.
    """
    logits = np.asarray(logits, np.float64)
    with np.errstate(over="ignore"):  # at a tiny temperature, all but the likeliest become exp(-inf) = 0
        p = np.exp((logits - logits.max()) / temperature)
    p /= p.sum()
    if top_k is not None or top_p < 1.0:  # otherwise no sorting, which takes longer than all the rest
        order = np.argsort(-p, kind="stable")
        if top_k is not None:
            p[order[top_k:]] = 0.0
            p /= p.sum()
        if top_p < 1.0:
            before = np.cumsum(p[order]) - p[order]  # the sum over all likelier tokens
            p[order[before >= top_p]] = 0.0
            p /= p.sum()
    if min_p > 0.0:
        p[p < min_p * p.max()] = 0.0
        p /= p.sum()
    return p


def choose_token(
    logits, uniform: float, temperature: float, top_k: int | None = None, top_p: float = 1.0, min_p: float = 0.0
) -> int:
    """Return the token at `uniform`, in [0, 1), of the cumulative probabilities.

    At temperature 0 it is the likeliest token.
    """
    if temperature == 0.0:
        return int(np.argmax(logits))
    cumulated = np.cumsum(probabilities(logits, temperature, top_k, top_p, min_p))
    return int(np.searchsorted(cumulated, uniform * cumulated[-1], side="right"))


def choose_tokens(logits, uniforms, temperature: float) -> np.ndarray:
    """Return `choose_token` of many rows, (B,) int32.

    logits: (B, V). uniforms: (B,) in [0, 1).
    """
    if temperature == 0.0:
        return logits.argmax(axis=1).astype(np.int32)
    scaled = logits.astype(np.float64) / temperature
    cumulated = np.exp(scaled - scaled.max(axis=1, keepdims=True)).cumsum(axis=1)
    below = cumulated <= (uniforms * cumulated[:, -1])[:, None]
    return below.sum(axis=1).astype(np.int32)


def sampling_bytes(rows: int, vocab_size: int) -> int:
    """Return the bytes that `choose_tokens` takes.

    They are the logits, at most three float64 arrays of their size, and `below`.
    """
    return rows * vocab_size * (8 + 3 * 8 + 1)
