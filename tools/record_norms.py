"""Record losses and gradient norms of sound runs, for tests of the spike detector.

    python tools/record_norms.py SHAKESPEARE.txt [--steps 11200]
    python tools/record_norms.py --run RUN NAME

Small byte-level models learn from the standard library (ASCII only), from Python's own
documentation and from the given text, with batches of 1, 4 and 32 windows and no
detector. Writes tests/reliability/recorded_norms.h5: one dataset for each training,
(steps, 2) float16, the loss in nats and the logarithm of the gradient norm. It takes
some twenty minutes on two cores.

The second form adds the log of a run under a name. In this way default-4 and default-1
were made, runs of the default model on bytes:

    npllm pretrain --data.tokenizer byte --spikes.enabled False --batch.size 4 \\
        --batch.ramp_start None --batch.ramp_steps 0 --train.steps 300000
    npllm pretrain --data.tokenizer byte --spikes.enabled False --batch.size 1 \\
        --batch.ramp_start None --batch.ramp_steps 0 --train.steps 12000

The first one was stopped after 13,000 steps.
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
from npllm.runs.metrics import read_metrics  # noqa: E402
from npllm.runs.run_folder import RunFolder  # noqa: E402
from npllm.training.config import RunConfig, TrainConfig  # noqa: E402
from npllm.training.loop import NextTokenGradients, build_state, updates  # noqa: E402
from npllm.training.spikes import SpikeConfig, log_norm  # noqa: E402

RECORDED = REPOSITORY / "tests" / "reliability" / "recorded_norms.h5"
LEARNING_RATES = {1: 1e-3, 4: 2e-3, 32: 3e-3}  # by batch
SIZES = {1: (64, 4, 64), 4: (64, 4, 64), 32: (32, 2, 32)}  # width, heads, block


def bytes_of(source: str) -> np.ndarray:
    """Return the training text of a source as bytes, (n,) uint16."""
    text = "\n".join(document.text for document in load_corpus(source).train)
    data = text.encode("ascii", "ignore") if source == "stdlib" else text.encode()
    return np.frombuffer(data, np.uint8).astype(np.uint16)


def small_training(batch: int, steps: int) -> RunConfig:
    """Return the config of a run whose steps take milliseconds, without a detector."""
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
    """Return [loss, log gradient norm] of each step of a run, (steps, 2) float16."""
    config = small_training(batch, steps)
    state = build_state(config, vocab_size=256)
    made = updates(state, config, NextTokenGradients(config, tokens))
    return np.array([(update.loss, log_norm(update.grad_norm)) for update in made], np.float16)


def record_all(text: str, steps: int) -> None:
    """Train them all, and write a new file."""
    with h5py.File(RECORDED, "w") as file:
        for name, source in {"stdlib": "stdlib", "pydoc": "pydoc", "shakespeare": text}.items():
            tokens = bytes_of(source)
            for batch in LEARNING_RATES:
                rows = record(tokens, batch, steps)
                write(file, f"{name}-{batch}", rows)
                print(f"{name}, batch {batch}: {len(rows):,} steps, the last losses {rows[-3:, 0]}", flush=True)


def add_run(run: Path, name: str) -> None:
    """Take in the metrics of a run."""
    made = read_metrics(RunFolder(run).metrics)
    rows = np.array([(update["loss"], log_norm(update["grad_norm"])) for update in made], np.float16)
    with h5py.File(RECORDED, "a") as file:
        write(file, name, rows)


def write(file: h5py.File, name: str, rows: np.ndarray) -> None:
    """As one dataset."""
    file.create_dataset(name, data=rows, compression="gzip", shuffle=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", nargs="?", help="a file of plays")
    parser.add_argument("--steps", type=int, default=11_200, help="updates in each training")
    parser.add_argument("--run", nargs=2, metavar=("RUN", "NAME"), help="add the log of a run")
    options = parser.parse_args()
    if options.run:
        add_run(Path(options.run[0]), options.run[1])
    elif options.text:
        record_all(options.text, options.steps)
    else:
        parser.error("give a file of plays, or --run")


if __name__ == "__main__":
    main()
