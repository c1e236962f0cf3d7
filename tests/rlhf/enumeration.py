"""A problem so small that all responses can be listed: at most 4 tokens out of 8.

Expectations over responses are therefore exact sums. With a reference policy ref, a
reward r and the weight beta of the KL penalty, for responses s:

    J(pi)  = E_pi[r - beta log(pi / ref)]    what RLHF maximises
    pi*(s) = ref(s) exp(r(s) / beta) / Z     the best policy, Z = E_ref[exp(r / beta)]
    J*     = beta log Z                      its objective J(pi*)

Source of the optimum: Ziegler et al., "Fine-tuning language models from human
preferences", 2019, equation 3 and after.
"""

from itertools import product
from typing import NamedTuple

import numpy as np
from model.model_cases import set_weights_of_order_one

from npllm.model import GPT, ModelConfig
from npllm.rlhf.sequences import Sequences, join

V, STOP, PROMPT = 8, 0, (0,)


def world_config(**changes) -> ModelConfig:
    """Return the config of a tiny model with an untied head, plus changes.

    With weights of order one, no token of it is certain and none is very unlikely.
    """
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 8, "vocab_size": V, "tie_embeddings": False}
    return ModelConfig(**sizes | changes)


def order_one(model: GPT, seed: int) -> GPT:
    """Set the model's weights to random values of order one; return the model."""
    set_weights_of_order_one(model, seed)
    return model


class World(NamedTuple):
    """All N responses to the prompt.

    sequences: prompt and response of each. stopped: (N,) bool, whether the response
    ends with the stop token.
    """

    sequences: Sequences
    stopped: np.ndarray


def enumerate_responses(max_tokens: int, block_size: int = 8) -> World:
    """Return every possible response.

    A response is up to max_tokens - 1 tokens and then the stop token, or max_tokens
    tokens without a stop token.
    """
    words: list[tuple[int, ...]] = []
    for length in range(max_tokens):
        words += [(*body, STOP) for body in product(range(1, V), repeat=length)]
    words += list(product(range(1, V), repeat=max_tokens))
    responses = [np.array(word, np.int32) for word in words]
    sequences = join([PROMPT] * len(words), responses, block_size)
    return World(sequences, np.array([word[-1] == STOP for word in words]))


def log_probabilities(model: GPT, world: World, temperature: float = 1.0) -> np.ndarray:
    """Return log pi(s) of every response, (N,) float64."""
    tokens, targets, _ = world.sequences
    logits = model.logits(tokens).astype(np.float64) / temperature  # (N, 8, V)
    log_p = logits - np.log(np.exp(logits).sum(axis=2, keepdims=True))
    of_targets = np.take_along_axis(log_p, np.maximum(targets, 0)[:, :, None], axis=2)[:, :, 0]
    return np.where(targets >= 0, of_targets, 0.0).sum(axis=1)


def objective(log_pi: np.ndarray, log_ref: np.ndarray, rewards: np.ndarray, beta: float) -> float:
    """Return J(pi). log_pi, log_ref, rewards: (N,), of all responses."""
    return float(np.exp(log_pi) @ (rewards - beta * (log_pi - log_ref)))


def best_objective(log_ref: np.ndarray, rewards: np.ndarray, beta: float) -> float:
    """Return J*, the objective of the best policy. log_ref, rewards: (N,)."""
    return float(beta * np.logaddexp.reduce(log_ref + rewards / beta))
