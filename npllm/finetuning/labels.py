"""Which labelled texts a classifier learns from, and which it is tested on."""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from npllm.data.records import Labelled
from npllm.errors import DataError
from npllm.reference.random import random_permutation

TEST_SITE, CAP_SITE, SUBSET_SITE = 0xDA7A0020, 0xDA7A0021, 0xDA7A0100  # random streams; of SUBSET_SITE one a class


def check_labels(train: Sequence[Labelled], test: Sequence[Labelled], least: int) -> None:
    """Raise DataError unless there are two classes, each with `least` texts to learn from, and no other in the test."""
    counts = Counter(record.label for record in train)
    if len(counts) < 2:
        raise DataError(f"The training texts have {len(counts)} class; give texts of at least two classes.")
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

    A record without a group is a group of its own. Where all groups of a class are larger than the share, the smallest
    is the test's. The order of the records is kept. Raises DataError for a class that is one group.
    """
    groups: defaultdict[str, defaultdict[object, list[int]]] = defaultdict(lambda: defaultdict(list))
    for number, record in enumerate(records):
        groups[record.label][record.group or number].append(number)
    in_test: set[int] = set()
    for label, members in groups.items():
        sizes = [list(rows) for rows in members.values()]
        if len(sizes) == 1:
            raise DataError(f"The class {label!r:.80} has one text or file only, but needs one on each side; add more.")
        room = fraction * sum(map(len, sizes))
        chosen: list[int] = []
        for place in random_permutation(len(sizes), seed=seed, site=TEST_SITE):
            if len(chosen) + len(sizes[place]) <= room:
                chosen += sizes[place]
        in_test.update(chosen or min(sizes, key=len))
    sides: tuple[list[Labelled], list[Labelled]] = [], []
    for number, record in enumerate(records):
        sides[number in in_test].append(record)
    return sides


def capped(records: Sequence[Labelled], most: int, seed: int) -> list[Labelled]:
    """At most so many of the records, chosen at random, in their order."""
    order = random_permutation(len(records), seed=seed, site=CAP_SITE)[:most]
    return [records[number] for number in sorted(order)]


def balanced_subset(labels: np.ndarray, per_class: int, seed: int) -> np.ndarray:
    """The rows of `per_class` texts of each class, chosen at random. With the same seed a larger subset holds a
    smaller one. labels: (n,) class numbers, of each at least per_class."""
    chosen = []
    for number in range(int(labels.max()) + 1):
        rows = np.flatnonzero(labels == number)
        chosen.append(rows[random_permutation(len(rows), seed=seed, site=SUBSET_SITE + number)[:per_class]])
    return np.concatenate(chosen)
