"""Rollouts: responses of the policy with the figures that the updates need.

They lie in buffers of a fixed size, which checkpoints save. So a run that stops in the
middle of a rollout goes on with the same responses, log-probabilities and advantages.
"""

from typing import NamedTuple

import numpy as np

from npllm.reference.lm_head_loss import IGNORED
from npllm.rlhf.sequences import Sequences

NUMBERS = ("kl_coef", "rollouts", "minibatches_used", "score_mean", "score_std")  # the scalars before the arrays
PER_TOKEN = ("log_probability", "values", "advantages", "returns")
MOST_ROLLOUTS = 2**31


class Number:
    """A scalar attribute of a `RolloutBuffer`.

    Its value lies in the array `floats` of the buffer, which checkpoints save. kind:
    the type that reading it returns; int for a counter, which float64 holds exactly.
    """

    def __init__(self, kind: type):
        self.kind = kind

    def __set_name__(self, owner: type, name: str) -> None:
        self.place = NUMBERS.index(name)

    def __get__(self, buffer: "RolloutBuffer", owner: type) -> int | float:
        return self.kind(buffer.floats[self.place])

    def __set__(self, buffer: "RolloutBuffer", value: int | float) -> None:
        buffer.floats[self.place] = value


class RolloutBuffer:
    """One rollout of B responses in rows of W columns.

    kl_coef: beta, the present weight of the KL penalty. rollouts: the number of
    rollouts collected so far. minibatches_used: the number of minibatches of this
    rollout that were used for updates. score_mean, score_std: mean and deviation of the
    reward model's scores in the first rollout, in which the policy still equals the
    reference.

    tokens, targets: (B, W) int32, as in `Sequences`. log_probability, values,
    advantages, returns: (B, W) float64; entry [b, t] belongs to the token of column t +
    1, which column t predicts.
    """

    kl_coef = Number(float)
    rollouts = Number(int)
    minibatches_used = Number(int)
    score_mean = Number(float)
    score_std = Number(float)

    def __init__(self, B: int, W: int, kl_coef: float):
        self.ids = np.zeros(2 * B * W, np.int32)
        self.floats = np.zeros(len(NUMBERS) + len(PER_TOKEN) * B * W, np.float64)
        self.tokens, self.targets = self.ids.reshape(2, B, W)
        arrays = self.floats[len(NUMBERS) :].reshape(len(PER_TOKEN), B, W)
        self.log_probability, self.values, self.advantages, self.returns = arrays
        self.kl_coef, self.score_std = kl_coef, 1.0

    @property
    def mask(self) -> np.ndarray:
        """(B, W) bool: the columns that predict a token of the response."""
        return self.targets != IGNORED

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the buffer as two flat arrays, by their names in a checkpoint."""
        return {"rollout_tokens": self.ids, "rollout_numbers": self.floats}

    def put(self, sequences: Sequences) -> None:
        """Replace tokens and targets by those of new responses."""
        self.tokens[...], self.targets[...] = sequences.tokens, sequences.targets


class Minibatch(NamedTuple):
    """The arrays of b rows of a `RolloutBuffer`; (b, W) each."""

    tokens: np.ndarray
    targets: np.ndarray
    mask: np.ndarray
    log_probability: np.ndarray
    values: np.ndarray
    advantages: np.ndarray
    returns: np.ndarray


def take(buffer: RolloutBuffer, rows: np.ndarray) -> Minibatch:
    """Return these rows of the buffer. rows: (b,), their numbers."""
    return Minibatch(*(getattr(buffer, name)[rows] for name in Minibatch._fields))


def check_rollout(
    arrays: dict[str, np.ndarray], shape: tuple[int, int], vocab_size: int, minibatches_per_rollout: int
) -> None:
    """Raise ValueError if arrays of a checkpoint cannot be a rollout of this run.

    arrays: as from `RolloutBuffer.arrays`. shape: (B, W).
    """
    tokens, targets = arrays["rollout_tokens"].reshape(2, *shape)
    numbers = dict(zip(NUMBERS, arrays["rollout_numbers"][: len(NUMBERS)].tolist(), strict=True))
    most = {"rollouts": MOST_ROLLOUTS, "minibatches_used": minibatches_per_rollout}
    rules = {
        "a token is not in the vocabulary": tokens.min() >= 0 and tokens.max() < vocab_size,
        "a target is not in the vocabulary": targets.min() >= -1 and targets.max() < vocab_size,
        "a response is empty": numbers["rollouts"] == 0 or (targets >= 0).any(axis=1).all(),
        "the scores have no deviation": numbers["score_std"] > 0,
        "beta is negative": numbers["kl_coef"] >= 0,
        **{
            f"{name} is out of range": 0 <= numbers[name] <= limit and numbers[name] % 1 == 0
            for name, limit in most.items()
        },
    }
    for rule, holds in rules.items():
        if not holds:
            raise ValueError(f"in its rollout, {rule}")
