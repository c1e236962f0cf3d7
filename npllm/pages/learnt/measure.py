"""All measures of one model: run once for the trained one, once for random weights."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from npllm.model import GPT
from npllm.pages.learnt import heads
from npllm.pages.learnt.embeddings import EmbeddingMeasures, frequent_tokens, measure_embeddings
from npllm.pages.learnt.heads import HeadScores, ScoreSums
from npllm.pages.learnt.inside import Inside, inside, logits_of_stream, rows_at_once
from npllm.pages.learnt.labels import UNKNOWN
from npllm.pages.learnt.neurons import Neuron, chosen_neurons
from npllm.pages.learnt.probe import can_be_probed, chance_accuracy, probe_accuracy
from npllm.pages.learnt.topics import Topics, mean_streams
from npllm.pages.learnt.windows import Windows

ROWS_AT_ONCE = 8
REPEATED_ROWS = 8  # that induction is measured on
NEIGHBOURS_SHOWN = 24  # tokens


class Probe(NamedTuple):
    """A linear probe. accuracies: one for each residual stream, (L+1,). chance: of the
    most frequent class. n_train, n_test: rows. n_classes: classes that occur."""

    name: str
    accuracies: list[float]
    chance: float
    n_train: int
    n_test: int
    n_classes: int


class Measures(NamedTuple):
    """heads: kind -> scores. lens: the loss of each residual stream, read by the head,
    (L+1,), nats per token. purities: mean purity of the neurons of each layer."""

    embeddings: EmbeddingMeasures
    heads: dict[str, HeadScores]
    lens: list[float]
    probes: list[Probe]
    neurons: list[Neuron]
    purities: list[float]


def measure(model: GPT, windows: Windows, topics: Topics | None, seed: int) -> Measures:
    """Return the measures of a model.

    topics: None = are not probed. seed: of the random rows that induction is seen on.
    """
    streams, activations = [], []

    def keep(found: Inside) -> None:
        streams.append(found.streams.astype(np.float32))
        activations.append(found.activations.astype(np.float32))

    scores = head_scores(model, windows, seed, keep)
    streams, activations = (np.concatenate(each, axis=1) for each in (streams, activations))
    chosen = [
        chosen_neurons(layer, each.reshape(windows.x.size, -1), windows.x.reshape(-1))
        for layer, each in enumerate(activations)
    ]
    tokens = frequent_tokens(windows.text.tokens, model.config.vocab_size)
    return Measures(
        measure_embeddings(model.merged()["token_embedding"], tokens, windows.pieces, NEIGHBOURS_SHOWN),
        scores,
        [lens_loss(model, stream, windows.y) for stream in streams],
        [*_token_probes(streams, windows), *([_topic_probe(model, topics)] if topics else [])],
        [neuron for neurons, _ in chosen for neuron in neurons],
        [purity for _, purity in chosen],
    )


def head_scores(
    model: GPT, windows: Windows, seed: int, see: Callable[[Inside], None] = lambda found: None
) -> dict[str, HeadScores]:
    """Return the scores of all heads, by kind.

    seed: of the random rows that induction is seen on. see: called with the inside of
    each pass over windows.
    """
    config, (B, T) = model.config, windows.x.shape
    sums = {kind: ScoreSums(config.n_layer, config.n_head) for kind in heads.KINDS}
    count = rows_at_once(model, T, ROWS_AT_ONCE)
    for start in range(0, B, count):
        x = windows.x[start : start + count]
        found = inside(model, x)
        for kind, wanted in _wanted(x, windows.pieces).items():
            sums[kind].add(found.attention, wanted)
        see(found)
    if T > 1:  # otherwise a row cannot be repeated
        for row in heads.repeated_rows(REPEATED_ROWS, T, config.vocab_size, seed)[:, None]:
            sums["induction"].add(inside(model, row).attention, heads.induction(row))
    return {kind: each.result() for kind, each in sums.items()}


def _wanted(x: np.ndarray, pieces: Sequence[bytes]) -> dict[str, np.ndarray]:
    return {
        "previous token": heads.previous_token(x),
        "first token": heads.first_token(x),
        "same token": heads.same_token(x),
        "matching bracket": heads.matching_bracket(x, pieces),
    }


def lens_loss(model: GPT, stream: np.ndarray, targets: np.ndarray) -> float:
    """Return the mean loss if a residual stream were the last one: its rows go through
    the final norm and the head. stream: (B, T, C). targets: (B, T)."""
    losses = []
    for rows, wanted in zip(stream, targets, strict=True):
        logits = logits_of_stream(model, rows)  # (T, V)
        highest = logits.max(axis=1)
        partition = highest + np.log(np.exp(logits - highest[:, None]).sum(axis=1))
        losses.append(partition - logits[np.arange(len(wanted)), wanted])
    return float(np.mean(losses))


def _token_probes(streams: np.ndarray, windows: Windows) -> list[Probe]:
    """The probes of the labels of tokens. streams: (L+1, B, T, C)."""
    of_tokens = {"inside a string or comment": windows.quoted, "indentation of the line": windows.indentation}
    is_train = np.zeros(windows.x.shape, bool)
    is_train[: windows.n_train] = True
    probes = []
    for name, labels in of_tokens.items():
        train, test = (labels != UNKNOWN) & is_train, (labels != UNKNOWN) & ~is_train
        if can_be_probed(labels[train], labels[test]):
            rows = [(stream[train], stream[test]) for stream in streams]
            probes.append(_probe(name, rows, labels[train], labels[test]))
    return probes


def _topic_probe(model: GPT, topics: Topics) -> Probe:
    test = topics.tests
    rows = [(stream[~test], stream[test]) for stream in mean_streams(model, topics)]
    return _probe("package of the snippet", rows, topics.classes[~test], topics.classes[test])


def _probe(name: str, rows: Sequence[tuple[np.ndarray, np.ndarray]], y_train, y_test) -> Probe:
    accuracies = [probe_accuracy(x_train, y_train, x_test, y_test) for x_train, x_test in rows]
    n_classes = len(np.unique(np.concatenate([y_train, y_test])))
    return Probe(name, accuracies, chance_accuracy(y_test), len(y_train), len(y_test), n_classes)
