"""The state of a training loop. Saved and restored, it continues with the same bits."""

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
    """Weights, the optimiser's moments, counters, and the window of the spike detector.

    Nothing else changes from one update to the next, apart from `extra`: the order of
    the data, the dropout masks, the learning rate and the batch size are functions of
    the counters. All stages use this class.
    """

    model: Trainable
    optimizer: Optimizer
    detector: SpikeDetector = field(default_factory=lambda: SpikeDetector(SpikeConfig()))
    next_sample: int = 0  # absolute id of the first sample not yet trained on or skipped
    tokens: int = 0  # trained on
    seconds: float = 0.0  # spent in the loop, in all processes together
    rollbacks: int = 0  # made before this state: how many of the ledger's it includes
    extra: dict[str, np.ndarray] = field(default_factory=dict)  # a stage's other arrays
    # Raises ValueError for saved arrays that are not valid values of `extra`.
    check_extra: Callable[[dict[str, np.ndarray]], None] | None = None

    @property
    def step(self) -> int:
        """Updates made."""
        return self.optimizer.updates

    def arrays(self) -> dict[str, np.ndarray]:
        """The flat buffers by name. They are the state's own arrays, not copies."""
        frozen = {} if self.model.frozen is None else {"frozen": self.model.frozen.flat}
        return {"params": self.model.params.flat, **self.optimizer.state, **frozen, **self.extra}

    @property
    def saved_bytes(self) -> int:
        """The bytes of all arrays, with the moments that other ranks have."""
        return sum(
            self.model.params.flat.nbytes if name in self.optimizer.state_names else array.nbytes
            for name, array in self.arrays().items()
        )

    def not_finite(self, names: tuple[str, ...] | None = None) -> str | None:
        """The name of the first buffer that holds a NaN or an infinity; None if there
        is none. names: the buffers to look at, None = all."""
        sum_of_squares = self.model.ops.gradient_norm  # not finite if any element is not
        arrays = self.arrays()
        return next((name for name in names or arrays if not isfinite(sum_of_squares(arrays[name]))), None)

    def counters(self) -> dict[str, Any]:
        """The rest of the state, as values that JSON can hold."""
        return {
            "updates": self.optimizer.updates,
            "next_sample": self.next_sample,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "rollbacks": self.rollbacks,
            "accepted": self.detector.history(),
        }

    def restore(self, arrays: dict[str, np.ndarray], counters: dict[str, Any]) -> None:
        """Set the state to saved `arrays` and `counters`.

        Raises ValueError, before anything changes, when they are not valid.
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
