"""A probe for the topic of a snippet: which package of the standard library it is
from."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from npllm.data.records import Labelled
from npllm.model import GPT
from npllm.pages.learnt.inside import inside, rows_at_once
from npllm.tokenizer import Tokenizer

OF_EACH_CLASS = 32  # snippets
LONGEST = 64  # tokens of a snippet; it loses the rest
ROWS_AT_ONCE = 16
TESTED = 3  # one snippet of so many tests the probe


class Topics(NamedTuple):
    """Snippets as tokens, with their classes: some teach the probe, others test it."""

    names: list[str]
    rows: list[np.ndarray]  # the tokens of each snippet
    classes: np.ndarray  # (n,)
    tests: np.ndarray  # (n,) bool


def encode_topics(snippets: Sequence[Labelled], tokenizer: Tokenizer, most: int) -> Topics:
    """The first snippets of each class, spread over its files. One file of three tests
    the probe, so that a snippet of its file does not teach it.

    most: tokens that the model reads; a snippet has at most LONGEST, too.
    """
    files: defaultdict[str, defaultdict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for each in snippets:
        files[each.label][each.group].append(each.text)
    rows, classes, tests = [], [], []
    for number, (_, by_file) in enumerate(sorted(files.items())):
        for text, is_test in _spread(list(by_file.values()), OF_EACH_CLASS):
            rows.append(np.array(tokenizer.encode(text)[: min(most, LONGEST)], np.int32))
            classes.append(number)
            tests.append(is_test)
    return Topics(sorted(files), rows, np.array(classes), np.array(tests, bool))


def _spread(files: list[list[str]], count: int) -> list[tuple[str, bool]]:
    """Snippets of a class, one of each file in turn, and whether they test."""
    found = []
    for turn in range(max(map(len, files))):
        for number, snippets in enumerate(files):
            if turn < len(snippets):
                found.append((snippets[turn], number % TESTED == 0))
    return found[:count]


def mean_streams(model: GPT, topics: Topics) -> np.ndarray:
    """The mean of the residual stream over the tokens of each snippet, (L+1, n, C)."""
    means = []
    count = rows_at_once(model, max(map(len, topics.rows)), ROWS_AT_ONCE)
    for start in range(0, len(topics.rows), count):
        rows = topics.rows[start : start + count]
        # What stands after a snippet in its row changes nothing: attention is causal.
        tokens = np.zeros((len(rows), max(map(len, rows))), np.int32)
        for row, ids in zip(tokens, rows, strict=True):
            row[: len(ids)] = ids
        streams = inside(model, tokens).streams  # (L+1, B, T, C)
        means += [streams[:, row, : len(ids)].mean(axis=1) for row, ids in enumerate(rows)]
    return np.stack(means, axis=1)
