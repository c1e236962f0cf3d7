"""Choose the labelled texts that a classifier is trained on, and those for its test."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from npllm.data.records import Labelled
from npllm.data.splitting import grouped
from npllm.errors import DataError
from npllm.reference.random import random_permutation
from npllm.reference.random_streams import CLASS_SUBSETS, TEST_CAP, TEST_SPLIT


def classes_of(records: Sequence[Labelled]) -> list[str]:
    """Return the names of the classes, sorted; a class number is a place in them."""
    return sorted({record.label for record in records})


def check_classes(records: Sequence[Labelled]) -> None:
    """Raise DataError unless there are at least two classes."""
    if len({record.label for record in records}) < 2:
        raise DataError(f"All texts have the label {records[0].label!r:.80}; give texts of at least two classes.")


def check_labels(train: Sequence[Labelled], test: Sequence[Labelled], least: int) -> None:
    """Raise DataError if a class has too few training texts, or only test texts.

    least: how many training texts each class needs.
    """
    counts = Counter(record.label for record in train)
    label, count = min(counts.items(), key=lambda item: item[1])
    if count < least:
        raise DataError(
            f"The class {label!r:.80} has {count} training texts, fewer than the first number of classify.labels, "
            f"{least}; give more texts of it, or lower that number."
        )
    if unknown := sorted({record.label for record in test} - set(counts)):
        raise DataError(f"No training text has the class {unknown[0]!r:.80}, which the test has; give some.")


def split_by_group(records: Sequence[Labelled], fraction: float, seed: int) -> tuple[list[Labelled], list[Labelled]]:
    """Return (train, test), with all records of a group on the same side.

    Records with the same `group`, such as one source file, are in one group. So are
    records with the same text, whatever their labels (see `data/splitting.py`).

    The test's share of a class is `fraction` of its records. The groups of the class
    are tried in a random order, and each one that still fits into the share goes to the
    test. If none fits and the test has nothing of this class yet, the smallest group
    goes to the test.

    Both lists keep the order of the records. Which side a record is on does not depend
    on that order. Raises DataError for a class that has only one group.
    """
    group_of = {number: name for name, members in grouped(records).items() for number in members}
    in_test: dict[str, bool] = {}  # name of a group -> its side, decided with the first of its labels
    for label in sorted({record.label for record in records}):
        sizes = Counter(group_of[number] for number, record in enumerate(records) if record.label == label)
        if len(sizes) == 1:
            raise DataError(
                f"The class {label!r:.80} has only one text or file, so none is left for the test; add more of it."
            )
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
    """Return at most `most` of the records, chosen at random, in their order."""
    order = random_permutation(len(records), seed=seed, stream=TEST_CAP)[:most]
    return [records[number] for number in sorted(order)]


def balanced_subset(labels: np.ndarray, per_class: int, seed: int) -> np.ndarray:
    """Return the numbers of `per_class` random texts of each class, in one array.

    With the same seed, a larger subset contains every smaller one.

    labels: (n,) class numbers; each class has at least per_class texts.
    """
    chosen = []
    for number in range(int(labels.max()) + 1):
        rows = np.flatnonzero(labels == number)
        chosen.append(rows[random_permutation(len(rows), seed=seed, stream=CLASS_SUBSETS[number])[:per_class]])
    return np.concatenate(chosen)
