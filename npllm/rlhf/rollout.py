"""Rollouts: responses of the policy, and all that the updates need to know of them, in buffers of a fixed size.

The buffers are part of the state that is saved: a run that stops between two epochs of a rollout goes on with the very
responses, log-probabilities and advantages that it had.
"""

from typing import NamedTuple

import numpy as np

from npllm.rlhf.sequences import Sequences

NUMBERS = ("kl_coef", "rollouts", "used", "score_mean", "score_std")  # the scalars before the arrays
PER_TOKEN = ("log_probability", "values", "advantages", "returns")


class RolloutBuffer:
    """One rollout of B responses in rows of W columns.

    kl_coef: beta. rollouts: how many were collected. used: minibatches of this one that updates were made from.
    score_mean, score_std: of the reward model on the first rollout, which is the reference's.
    log_probability, values, advantages, returns: (B, W) float64, named by the column that predicts the token.
    """

    def __init__(self, B: int, W: int, kl_coef: float):
        self.ids = np.zeros(2 * B * W, np.int32)
        self.floats = np.zeros(len(NUMBERS) + len(PER_TOKEN) * B * W, np.float64)
        self.tokens, self.targets = self.ids.reshape(2, B, W)
        arrays = self.floats[len(NUMBERS) :].reshape(len(PER_TOKEN), B, W)
        self.log_probability, self.values, self.advantages, self.returns = arrays
        self["kl_coef"], self["score_std"] = kl_coef, 1.0

    def __getitem__(self, name: str) -> float:
        return float(self.floats[NUMBERS.index(name)])

    def __setitem__(self, name: str, value: float) -> None:
        self.floats[NUMBERS.index(name)] = value

    @property
    def mask(self) -> np.ndarray:
        """(B, W): the columns that predict a token of the response."""
        return self.targets >= 0

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it, flat, under the names that a checkpoint knows."""
        return {"rollout_tokens": self.ids, "rollout_numbers": self.floats}

    def put(self, sequences: Sequences) -> None:
        """Take in new responses."""
        self.tokens[...], self.targets[...] = sequences.tokens, sequences.targets


class Minibatch(NamedTuple):
    """Some rows of a buffer; (b, W) each."""

    tokens: np.ndarray
    targets: np.ndarray
    mask: np.ndarray
    log_probability: np.ndarray
    values: np.ndarray
    advantages: np.ndarray
    returns: np.ndarray


def take(buffer: RolloutBuffer, rows: np.ndarray) -> Minibatch:
    """The rows of the buffer."""
    return Minibatch(*(getattr(buffer, name)[rows] for name in Minibatch._fields))
