"""Which records are trained on and which are held out.

A held-out figure means something only if the model has not trained on the same thing.
So records that share something are on the same side of a split:

    records with a prompt     the same prompt (in a conversation: the same first message
                              of the user), whatever the responses
    no or only one prompt     a response in common
    labelled texts            the same text, or the same source file

White space around a text does not count.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from npllm.data.records import Labelled, PromptText, parts_of
from npllm.errors import ConfigError, DataError

T = TypeVar("T")


def split_records(records: Sequence[T], val_fraction: float, seed: int) -> tuple[list[T], list[T]]:
    """Return (train, val). Whole groups of records are held out.

    val has val_fraction of the records, as nearly as groups allow; each side has at
    least one group. The groups are sorted by a hash of what they share and the seed. So
    the order of the records does not matter, and records that are added later move only
    a few groups from one side to the other. Each side keeps the order of the records.

    Raises ConfigError for a fraction outside (0, 1), and DataError when all records are
    one group.
    """
    if not 0 < val_fraction < 1:
        raise ConfigError(f"data.val_fraction is {val_fraction}; give a number between 0 and 1, such as 0.05.")
    if len(records) < 2:
        raise DataError(f"the data has {len(records)} records, too few to train and validate on; give at least two.")
    groups = grouped(records)
    if len(groups) < 2:
        raise DataError(
            f"all {len(records):,} records have the same prompt, or responses in common, so that none can be held out; "
            "give at least two different ones."
        )
    order = sorted(groups, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
    held_out = set(_nearest([groups[name] for name in order], val_fraction * len(records)))
    sides: tuple[list[T], list[T]] = [], []
    for number, record in enumerate(records):
        sides[number in held_out].append(record)
    return sides


def _nearest(groups: Sequence[list[int]], share: float) -> Iterable[int]:
    """Members of the groups that are held out: some groups, but not all of them.

    They are the groups that fit into the share, one after the other. The smallest other
    group is added where that brings the number nearer to the share.
    """
    chosen: list[list[int]] = []
    others: list[list[int]] = []
    left = share
    for group in groups:
        fits = len(group) <= left
        (chosen if fits else others).append(group)
        left -= len(group) * fits
    smallest = min(others, key=len, default=[])
    if smallest and (not chosen or len(smallest) < 2 * left):
        chosen.append(smallest)
    if len(chosen) == len(groups):
        chosen.pop()
    return (number for group in chosen for number in group)


def grouped(records: Sequence[Any]) -> dict[str, list[int]]:
    """Return the numbers of the records that must be on the same side, by group name.

    The name comes from the smallest thing that the group shares. Two records are also
    in one group when they are connected by other records, each of which has something
    in common with the next.
    """
    leader: dict[str, str] = {}  # key -> a smaller key of its group; the smallest -> itself

    def lead(key: str) -> str:
        while leader.setdefault(key, key) != key:
            leader[key] = key = leader[leader[key]]
        return key

    one_for_all = len({_asked(record) for record in records}) == 1  # then the prompt does not distinguish records
    keys = [_keys(record, "" if one_for_all else _asked(record)) for record in records]
    for first, *others in keys:
        for other in others:
            low, high = sorted((lead(first), lead(other)))
            leader[high] = low
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for number, (first, *_) in enumerate(keys):
        groups[lead(first)].append(number)
    return dict(groups)


def _asked(record: Any) -> str:
    """The prompt, which other records may share; a labelled text has none."""
    return "" if isinstance(record, Labelled) else first_question(parts_of(record)[0]).strip()


def _keys(record: Any, asked: str) -> list[str]:
    """What a record shares with the other records of its group."""
    if isinstance(record, Labelled):
        return [*([f"group {record.group}"] if record.group else []), f"text {record.text.strip()}"]
    _, responses = parts_of(record)
    return [f"prompt {asked}"] if asked or not responses else [f"response {text.strip()}" for text in responses]


def first_question(prompt: PromptText) -> str:
    """Return the first message of the user, or the prompt itself where it is a text."""
    if isinstance(prompt, str):
        return prompt
    return next(message.content for message in prompt if message.role == "user")
