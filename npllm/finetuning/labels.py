"""Which labelled texts a classifier learns from, and which it is tested on."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from npllm.data.records import Labelled
from npllm.data.splitting import grouped
from npllm.errors import DataError
from npllm.reference.random import random_permutation
from npllm.reference.random_streams import CLASS_SUBSETS, TEST_CAP, TEST_SPLIT


def check_classes(records: Sequence[Labelled]) -> None:
    """Raise DataError unless there are two classes."""
    if len({record.label for record in records}) < 2:
        raise DataError(f"All texts have the label {records[0].label!r:.80}; give texts of at least two classes.")


def check_labels(train: Sequence[Labelled], test: Sequence[Labelled], least: int) -> None:
    """Raise DataError unless each class has `least` texts to learn from, and the test no other class."""
    counts = Counter(record.label for record in train)
    label, count = min(counts.items(), key=lambda item: item[1])
    if count < least:
        raise DataError(
            f"The class {label!r:.80} has {count} texts to learn from, but classify.labels begins at {least}; give "
            "more of it, or lower the first of classify.labels."
        )
    if unknown := sorted({record.label for record in test} - set(counts)):
        raise DataError(f"The test has the class {unknown[0]!r:.80}, which the training texts lack; add some of it.")


def split_by_group(records: Sequence[Labelled], fraction: float, seed: int) -> tuple[list[Labelled], list[Labelled]]:
    """(train, test): in every class whole groups, in a random order, as far as they fit into the test's share.

    A group is the records of one file, and those with the same text, whatever their labels; see `data/splitting.py`.
    Where all groups of a class are larger than the share, the smallest is the test's. The order of the records is kept,
    and does not matter. Raises DataError for a class that is one group.
    """
    group_of = {number: name for name, members in grouped(records).items() for number in members}
    in_test: dict[str, bool] = {}  # of the groups that are decided; one with several labels by the first of them
    for label in sorted({record.label for record in records}):
        sizes = Counter(group_of[number] for number, record in enumerate(records) if record.label == label)
        if len(sizes) == 1:
            raise DataError(f"The class {label!r:.80} has one text or file only, but needs one on each side; add more.")
        room = fraction * sizes.total() - sum(sizes[name] for name in sizes if in_test.get(name))
        open_groups = sorted(name for name in sizes if name not in in_test)
        chosen = []
        for place in random_permutation(len(open_groups), seed=seed, stream=TEST_SPLIT):
            if sizes[open_groups[place]] <= room:
                chosen.append(open_groups[place])
                room -= sizes[open_groups[place]]
        if not chosen and open_groups and not any(in_test.get(name) for name in sizes):
            chosen = [min(open_groups, key=sizes.__getitem__)]
        in_test |= dict.fromkeys(open_groups, False) | dict.fromkeys(chosen, True)
    sides: tuple[list[Labelled], list[Labelled]] = [], []
    for number, record in enumerate(records):
        sides[in_test[group_of[number]]].append(record)
    return sides


def capped(records: Sequence[Labelled], most: int, seed: int) -> list[Labelled]:
    """At most so many of the records, chosen at random, in their order."""
    order = random_permutation(len(records), seed=seed, stream=TEST_CAP)[:most]
    return [records[number] for number in sorted(order)]


def balanced_subset(labels: np.ndarray, per_class: int, seed: int) -> np.ndarray:
    """The rows of `per_class` texts of each class, chosen at random. With the same seed a larger subset holds a
    smaller one. labels: (n,) class numbers, of each at least per_class."""
    chosen = []
    for number in range(int(labels.max()) + 1):
        rows = np.flatnonzero(labels == number)
        chosen.append(rows[random_permutation(len(rows), seed=seed, stream=CLASS_SUBSETS[number])[:per_class]])
    return np.concatenate(chosen)
