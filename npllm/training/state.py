"""The state of a training loop: one object that can be saved, restored, and then goes on bit for bit."""

from dataclasses import dataclass

import numpy as np

from npllm.model import GPT
from npllm.optim import Optimizer


@dataclass
class LoopState:
    """Weights, the optimiser's moments and the loop's counters. Nothing else changes from one update to the next:
    the data order, the dropout masks, the learning rate and the batch size are functions of these counters."""

    model: GPT
    optimizer: Optimizer
    next_sample: int = 0  # absolute id of the first sample not yet trained on
    tokens: int = 0  # trained on
    seconds: float = 0.0  # spent in the loop, over all its starts

    @property
    def step(self) -> int:
        """Updates made."""
        return self.optimizer.updates

    def arrays(self) -> dict[str, np.ndarray]:
        """The flat buffers, by name; the state's own, not copies."""
        return {"params": self.model.params.flat, **self.optimizer.state}

    def counters(self) -> dict[str, int | float]:
        """The rest, for JSON."""
        return {
            "updates": self.optimizer.updates,
            "next_sample": self.next_sample,
            "tokens": self.tokens,
            "seconds": self.seconds,
        }

    def restore(self, arrays: dict[str, np.ndarray], counters: dict[str, int | float]) -> None:
        """Become the state that `arrays` and `counters` were taken from."""
        for name, array in self.arrays().items():
            array[:] = arrays[name]
        self.model.grads.flat[:] = 0
        self.optimizer.updates = counters["updates"]
        self.next_sample = counters["next_sample"]
        self.tokens = counters["tokens"]
        self.seconds = counters["seconds"]
