"""Count the planted faults that the spike detector sees in the first batch after them.

    python tools/plant_faults.py [--steps 1500] [--times 20]

A small byte-level model of the standard library trains with batches of 1, 4, 8 and 32
windows. Then each fault is planted in a copy of its state, with other data each time,
and the detector judges the next batch. Prints a table of the faults and the share of
each that is seen.
"""

import argparse
import copy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tools")]

from record_norms import bytes_of, small_training  # noqa: E402

from npllm.training.loop import NextTokenGradients, build_state, updates  # noqa: E402

BATCHES = (1, 4, 8, 32)
HIGHEST_BIT = 30  # of an exponent


class Trained:
    """A training run after some updates, whose state can be restored."""

    def __init__(self, tokens: np.ndarray, batch: int, steps: int):
        self.tokens, self.batch, self.config = tokens, batch, small_training(batch, 2 * steps)
        self.gradients = NextTokenGradients(self.config, tokens)
        self.state = build_state(self.config, 256)
        for _, _ in zip(updates(self.state, self.config, self.gradients), range(steps), strict=False):
            pass
        self.saved = {name: array.copy() for name, array in self.state.arrays().items()}
        self.counters = copy.deepcopy(self.state.counters())

    def seen(self, fault: Callable[["Trained", np.random.Generator], tuple[float, float]], n: int) -> bool:
        """Whether the detector sees the fault that is planted for the n-th time."""
        self.state.restore(self.saved, copy.deepcopy(self.counters))
        self.ids = np.arange(self.batch) + 10**6 + n * self.batch
        with np.errstate(all="ignore"):
            loss, norm = fault(self, np.random.default_rng(n))
        return self.state.detector.reason(self.state.step, loss, norm) is not None

    def next_batch(self) -> tuple[float, float]:
        """Return the loss and gradient norm of a batch of sound data."""
        loss = self.gradients(self.state.model, self.ids, self.state.step).loss
        return loss, self.state.optimizer.gradient_norm()


def sound(trained: Trained, _: np.random.Generator) -> tuple[float, float]:
    return trained.next_batch()


def fifty_fold(trained: Trained, _: np.random.Generator) -> tuple[float, float]:
    loss, norm = trained.next_batch()
    return 50 * loss, 50 * norm


def fifty_fold_gradient(trained: Trained, _: np.random.Generator) -> tuple[float, float]:
    loss, norm = trained.next_batch()
    return loss, 50 * norm


def too_long(factor: float) -> Callable[[Trained, np.random.Generator], tuple[float, float]]:
    """One update whose learning rate is `factor` times too high."""

    def fault(trained: Trained, _: np.random.Generator) -> tuple[float, float]:
        trained.next_batch()
        trained.state.optimizer.step(grad_clip=1.0, lr=factor * trained.config.optim.lr)
        return trained.next_batch()

    return fault


def shuffled(trained: Trained, rng: np.random.Generator) -> tuple[float, float]:
    real, size = trained.gradients, trained.config.model.block_size + 1
    text = trained.tokens.copy()
    for start in real.sampler.positions(trained.ids):
        text[start : start + size] = rng.permutation(text[start : start + size])
    trained.gradients = NextTokenGradients(trained.config, text)
    try:
        return trained.next_batch()
    finally:
        trained.gradients = real


def flipped_bit(bit: int) -> Callable[[Trained, np.random.Generator], tuple[float, float]]:
    """One flipped bit of one weight."""

    def fault(trained: Trained, rng: np.random.Generator) -> tuple[float, float]:
        flat = trained.state.model.params.flat
        flat.view(np.uint32)[rng.integers(len(flat))] ^= np.uint32(1 << bit)
        return trained.next_batch()

    return fault


FAULTS = {
    "none": sound,
    "batch × 50": fifty_fold,
    "only its gradient × 50": fifty_fold_gradient,
    "one update with lr × 10": too_long(10),
    "one update with lr × 100": too_long(100),
    "one update with lr × 3000": too_long(3000),
    "bytes shuffled in each window": shuffled,
    "highest exponent bit of a weight": flipped_bit(HIGHEST_BIT),
    "next exponent bit of a weight": flipped_bit(HIGHEST_BIT - 1),
}


def rows(steps: int, times: int) -> Iterator[str]:
    """Yield the lines of the table."""
    tokens = bytes_of("stdlib")
    all_trained = [Trained(tokens, batch, steps) for batch in BATCHES]
    yield "| fault | " + " | ".join(f"batch {batch}" for batch in BATCHES) + " |"
    yield "| --- |" + " --- |" * len(BATCHES)
    for name, fault in FAULTS.items():
        shares = [sum(trained.seen(fault, n) for n in range(times)) for trained in all_trained]
        yield f"| {name} | " + " | ".join(f"{share}/{times}" for share in shares) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1500, help="updates before the faults")
    parser.add_argument("--times", type=int, default=20, help="how often each fault is planted")
    options = parser.parse_args()
    for row in rows(options.steps, options.times):
        print(row, flush=True)


if __name__ == "__main__":
    main()
