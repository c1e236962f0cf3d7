"""Record losses and gradient norms of sound trainings, which the spike detector is tested on.

    python tools/record_norms.py SHAKESPEARE.txt [--steps 11200]

Small byte-level models learn from the standard library (ASCII only), from Python's own
documentation and from the given text, with batches of 1, 4 and 32 windows and no
detector. Writes tests/reliability/recorded_norms.h5: one dataset for each training,
(steps, 2) float16, the loss in nats and the logarithm of the gradient norm. It takes
some twenty minutes on two cores.
"""

import argparse
import sys
from pathlib import Path

import h5py
import numpy as np

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from npllm.data.corpora import load_corpus  # noqa: E402
from npllm.model import Architecture  # noqa: E402
from npllm.optim import BatchConfig, OptimConfig  # noqa: E402
from npllm.training.config import RunConfig, TrainConfig  # noqa: E402
from npllm.training.loop import NextTokenGradients, build_state, updates  # noqa: E402
from npllm.training.spikes import SpikeConfig, log_norm  # noqa: E402

RECORDED = REPOSITORY / "tests" / "reliability" / "recorded_norms.h5"
LEARNING_RATES = {1: 1e-3, 4: 2e-3, 32: 3e-3}  # by batch
SIZES = {1: (64, 4, 64), 4: (64, 4, 64), 32: (32, 2, 32)}  # width, heads, block


def bytes_of(source: str) -> np.ndarray:
    """The training text of a source as bytes, (n,) uint16."""
    text = "\n".join(document.text for document in load_corpus(source).train)
    data = text.encode("ascii", "ignore") if source == "stdlib" else text.encode()
    return np.frombuffer(data, np.uint8).astype(np.uint16)


def small_training(batch: int, steps: int) -> RunConfig:
    """A training whose steps take milliseconds, without a detector."""
    lr = LEARNING_RATES.get(batch, 3e-3)
    width, heads, block = SIZES.get(batch, SIZES[32])
    return RunConfig(
        model=Architecture(
            n_layer=2,
            n_head=heads,
            n_embd=width,
            block_size=block,
            norm="rmsnorm",
            position="rotary",
            mlp="swiglu",
            bias=False,
        ),
        optim=OptimConfig(lr=lr, min_lr=lr / 10, warmup_steps=100),
        batch=BatchConfig(size=batch, micro_size=min(batch, 8)),
        train=TrainConfig(steps=steps),
        spikes=SpikeConfig(enabled=False),
    )


def record(tokens: np.ndarray, batch: int, steps: int) -> np.ndarray:
    """[loss, log gradient norm] of each step of a training, (steps, 2) float16."""
    config = small_training(batch, steps)
    state = build_state(config, vocab_size=256)
    made = updates(state, config, NextTokenGradients(config, tokens))
    return np.array([(update.loss, log_norm(update.grad_norm)) for update in made], np.float16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", help="a file of plays")
    parser.add_argument("--steps", type=int, default=11_200, help="updates in each training")
    options = parser.parse_args()
    with h5py.File(RECORDED, "w") as file:
        for name, source in {"stdlib": "stdlib", "pydoc": "pydoc", "shakespeare": options.text}.items():
            tokens = bytes_of(source)
            for batch in LEARNING_RATES:
                rows = record(tokens, batch, options.steps)
                file.create_dataset(f"{name}-{batch}", data=rows, compression="gzip", shuffle=True)
                print(f"{name}, batch {batch}: {len(rows):,} steps, the last losses {rows[-3:, 0]}", flush=True)


if __name__ == "__main__":
    main()
