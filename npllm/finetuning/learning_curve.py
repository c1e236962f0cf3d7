"""The learning curve: accuracy against the number of labels that a classifier has.

Each point of the curve is one training. It has

- a method: "pretrained", or "scratch" (from random weights);
- a number of labels per class;
- a seed, which decides the subset of the texts, the order of training, and the initial
  weights of the head (with "scratch", of the whole model).

Both methods get the same subsets, the same batches and the same number of updates.
Their schedules have the same shape, but each method has its own learning rate.

The trainings are short, so they save no checkpoints. Each result is saved when it is
there, and a curve that was stopped continues with the first point that is missing.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from npllm.errors import DataError
from npllm.files.atomic import write_atomically
from npllm.files.bounded_read import read_bounded
from npllm.files.strict_json import from_fields, parse_json
from npllm.finetuning.adaptation import AdaptConfig, adapted
from npllm.finetuning.classifier import ClassifierGradients, Texts, evaluate_classifier
from npllm.finetuning.classify_config import ClassifyConfig
from npllm.finetuning.labels import balanced_subset
from npllm.finetuning.stage_run import new_state
from npllm.model import GPT
from npllm.training.interrupts import StopRequest
from npllm.training.loop import updates
from npllm.training.spikes import SpikeConfig
from npllm.training.state import LoopState

LARGEST_CURVE = 1 << 20  # bytes


@dataclass(frozen=True)
class Point:
    """The result of one training.

    method: "pretrained" or "scratch". labels: per class. accuracy: on the test texts,
    from 0 to 1.
    """

    method: str
    labels: int
    seed: int
    updates: int
    accuracy: float


def planned(config: ClassifyConfig, train_labels: np.ndarray) -> Iterator[tuple[str, int, int]]:
    """Yield (method, labels, seed) of each point of the curve, fewest labels first.

    Numbers of labels for which a class has too few texts are left out.

    train_labels: the class number of each training text, (n,) integers.
    """
    fewest = int(np.bincount(train_labels).min())
    for labels in (labels for labels in config.classify.labels if labels <= fewest):
        for method in ("pretrained", "scratch") if config.classify.compare_scratch else ("pretrained",):
            for number in range(config.classify.seeds):
                yield method, labels, (config.train.seed + number) % 2**64


def train_point(
    base: GPT, config: ClassifyConfig, train: Texts, test: Texts, plan: tuple[str, int, int], stop: StopRequest
) -> Point | None:
    """Train one classifier and test it.

    Returns None if a stop is requested before the training ends.

    plan: (method, labels, seed) of the point.
    """
    method, labels, seed = plan
    subset = train.take(balanced_subset(train.labels, labels, seed))
    config = replace(config, train=replace(config.train, seed=seed), spikes=SpikeConfig(enabled=False))
    if method == "scratch":
        config = replace(config, optim=replace(config.optim, lr=config.classify.scratch_lr))
    config = config.with_steps(config.n_updates(len(subset.tokens)))
    state = initial_state(base, config, int(train.labels.max()) + 1, from_scratch=method == "scratch")
    for _ in updates(state, config, ClassifierGradients(subset, config.classify.aux_lm, config.classify.pool, config)):
        if stop.requested:
            return None
    return Point(
        method, labels, seed, state.step, evaluate_classifier(state.model, test, config.classify.pool).accuracy
    )


def initial_state(base: GPT, config: ClassifyConfig, n_classes: int, *, from_scratch: bool = False) -> LoopState:
    """Return the state of a classifier before its first update.

    From scratch all weights are trained, whatever config.adapt says: frozen weights
    would stay random.
    """
    seed, dtype = config.train.seed, config.train.dtype
    if not from_scratch:
        return new_state(adapted(base, config.adapt, n_outputs=n_classes, seed=seed, dtype=dtype), config)
    model = GPT(replace(base.config.language_model, n_outputs=n_classes), seed=seed, dtype=dtype)
    return new_state(model, replace(config, adapt=AdaptConfig()))


def read_curve(path: Path) -> list[Point]:
    """Return the points that are done, in order; none if there is no file yet.

    Raises DataError for a line that is not a point.
    """
    lines = read_bounded(path, LARGEST_CURVE).splitlines() if path.exists() else []
    return [_point(path, number, line) for number, line in enumerate(lines, 1)]


def _point(path: Path, number: int, line: bytes) -> Point:
    try:
        return from_fields(Point, parse_json(line))
    except ValueError as error:
        raise DataError(
            f"{path}, line {number}, is not a point of the curve ({error}); delete the file and resume the run."
        ) from error


def write_curve(path: Path, points: list[Point]) -> None:
    """Write all points, one JSON object per line. The file is replaced as a whole."""
    write_atomically(path, "".join(json.dumps(asdict(point)) + "\n" for point in points).encode())


def accuracies(points: list[Point]) -> dict[str, dict[int, list[float]]]:
    """Return {method: {labels per class: the accuracy of each seed}}."""
    table: dict[str, dict[int, list[float]]] = {}
    for point in points:
        table.setdefault(point.method, {}).setdefault(point.labels, []).append(point.accuracy)
    return table
