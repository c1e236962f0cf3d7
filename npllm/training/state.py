"""The state of a training loop: one object that can be saved, restored, and then goes on bit for bit."""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import numpy as np

from npllm.model import Trainable
from npllm.optim import Optimizer
from npllm.training.spikes import SpikeConfig, SpikeDetector


@dataclass
class LoopState:
    """Weights, the optimiser's moments, the loop's counters and the window of the spike detector.

    Nothing else changes from one update to the next, apart from what is in `extra`: the data order, the dropout masks,
    the learning rate and the batch size are functions of these counters. The same object serves every kind of training.
    """

    model: Trainable
    optimizer: Optimizer
    detector: SpikeDetector = field(default_factory=lambda: SpikeDetector(SpikeConfig(), warmup_steps=0))
    next_sample: int = 0  # absolute id of the first sample not yet trained on or skipped
    tokens: int = 0  # trained on
    seconds: float = 0.0  # spent in the loop, over all its starts
    rollbacks: int = 0  # that lie behind this state: which part of the ledger it knows of
    extra: dict[str, np.ndarray] = field(default_factory=dict)  # what else a stage carries from update to update
    check_extra: Callable[[dict[str, np.ndarray]], None] | None = None  # ValueError for arrays that cannot be such

    @property
    def step(self) -> int:
        """Updates made."""
        return self.optimizer.updates

    def arrays(self) -> dict[str, np.ndarray]:
        """The flat buffers, by name; the state's own, not copies."""
        frozen = {} if self.model.frozen is None else {"frozen": self.model.frozen.flat}
        return {"params": self.model.params.flat, **self.optimizer.state, **frozen, **self.extra}

    def not_finite(self, names: tuple[str, ...] | None = None) -> str | None:
        """The first buffer (of those named) with a NaN or an infinity in it, if any."""
        sum_of_squares = self.model.ops.gradient_norm  # not finite if any element is not, and a fast pass over all
        arrays = self.arrays()
        return next((name for name in names or arrays if not isfinite(sum_of_squares(arrays[name]))), None)

    def counters(self) -> dict[str, Any]:
        """The rest, for JSON."""
        return {
            "updates": self.optimizer.updates,
            "next_sample": self.next_sample,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "rollbacks": self.rollbacks,
            "accepted": self.detector.history(),
        }

    def restore(self, arrays: dict[str, np.ndarray], counters: dict[str, Any]) -> None:
        """Become the state that `arrays` and `counters` were taken from.

        Raises ValueError, before anything changes, when the counters cannot be those of a loop.
        """
        _check(counters)
        if self.check_extra is not None:
            self.check_extra(arrays)
        for name, array in self.arrays().items():
            array[:] = arrays[name]
        self.model.grads.flat[:] = 0
        self.optimizer.updates = counters["updates"]
        self.next_sample = counters["next_sample"]
        self.tokens = counters["tokens"]
        self.seconds = counters["seconds"]
        self.rollbacks = counters["rollbacks"]
        self.detector.restore(counters["accepted"])


def _check(counters: dict[str, Any]) -> None:
    for name in ("updates", "next_sample", "tokens", "rollbacks"):
        value = counters.get(name)
        if type(value) is not int or not 0 <= value < 2**62:
            raise ValueError(f"{name} is {value!r:.80}")
    seconds, history = counters.get("seconds"), counters.get("accepted")
    if type(seconds) not in (int, float) or not seconds >= 0:
        raise ValueError(f"seconds is {seconds!r:.80}")
    is_pair = lambda row: type(row) is list and [type(value) for value in row] == [float, float]  # noqa: E731
    if type(history) is not list or not all(map(is_pair, history)):
        raise ValueError("accepted is not a list of pairs of numbers")
