"""A world small enough to write down: every response of at most 4 tokens out of 8, its gold reward, and what follows.

With a reference ref, a reward r and a price beta of divergence, over all responses s:

    J(pi)  = E_pi[r - beta log(pi / ref)]         what reinforcement learning from feedback maximises
    pi*(s) = ref(s) exp(r(s) / beta) / Z          its maximum, with Z = E_ref[exp(r / beta)]
    J*     = beta log Z

Source of the optimum: Ziegler et al., "Fine-tuning language models from human preferences", 2019, equation 3 and after.
"""

from itertools import product
from typing import NamedTuple

import numpy as np
from model.model_cases import set_weights_of_order_one

from npllm.model import GPT, ModelConfig
from npllm.rlhf.sequences import Sequences, join

V, STOP, PROMPT = 8, 0, (0,)


def world_config(**changes) -> ModelConfig:
    """A head of its own and weights of order one: no token is certain, and none is hopeless."""
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 8, "vocab_size": V, "tie_embeddings": False}
    return ModelConfig(**sizes | changes)


def order_one(model: GPT, seed: int) -> GPT:
    """The model, with weights of order one."""
    set_weights_of_order_one(model, seed)
    return model


class World(NamedTuple):
    """sequences: all N responses to the prompt. stopped: (N,), those that end in the stop token."""

    sequences: Sequences
    stopped: np.ndarray


def enumerate_responses(max_tokens: int, block_size: int = 8) -> World:
    """Every response: words without a stop token, then the stop token, or cut off after max_tokens."""
    words: list[tuple[int, ...]] = []
    for length in range(max_tokens):
        words += [(*body, STOP) for body in product(range(1, V), repeat=length)]
    words += list(product(range(1, V), repeat=max_tokens))
    responses = [np.array(word, np.int32) for word in words]
    sequences = join([PROMPT] * len(words), responses, block_size)
    return World(sequences, np.array([word[-1] == STOP for word in words]))


def log_probabilities(model: GPT, world: World, temperature: float = 1.0) -> np.ndarray:
    """log pi(s) of every response, (N,) float64."""
    tokens, targets, _ = world.sequences
    logits = model.logits(tokens).astype(np.float64) / temperature  # (N, 8, V)
    log_p = logits - np.log(np.exp(logits).sum(axis=2, keepdims=True))
    of_targets = np.take_along_axis(log_p, np.maximum(targets, 0)[:, :, None], axis=2)[:, :, 0]
    return np.where(targets >= 0, of_targets, 0.0).sum(axis=1)


def objective(log_pi: np.ndarray, log_ref: np.ndarray, rewards: np.ndarray, beta: float) -> float:
    """J"""
    return float(np.exp(log_pi) @ (rewards - beta * (log_pi - log_ref)))


def best_objective(log_ref: np.ndarray, rewards: np.ndarray, beta: float) -> float:
    """J*"""
    return float(beta * np.logaddexp.reduce(log_ref + rewards / beta))
