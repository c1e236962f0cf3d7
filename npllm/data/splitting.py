"""Which records are learnt from and which are held out.

A held-out figure means something only where the model has not learnt from the same thing. So records that share
something lie on the same side of a split: those with the same prompt (of messages: with the same first message of the
user), whatever is answered; where there is no prompt, or one for all, those with a response in common; of labelled
texts, the same text and the texts of one file. White space around a text does not count.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from npllm.data.records import Labelled, PromptText, parts_of
from npllm.errors import ConfigError, DataError

T = TypeVar("T")


def split_records(records: Sequence[T], val_fraction: float, seed: int) -> tuple[list[T], list[T]]:
    """(train, val): whole groups of records are held out, val_fraction of the records as nearly as groups allow, and at
    least one group on each side.

    Groups are taken in the order of a hash of what they share and the seed. So the order of the records does not
    matter, and records that are added later move no more than a few groups at the border. Each side keeps the order of
    the records. Raises ConfigError for a fraction outside (0, 1), DataError where all records are one group.
    """
    if not 0 < val_fraction < 1:
        raise ConfigError(f"data.val_fraction is {val_fraction}: give a number between 0 and 1, such as 0.05.")
    if len(records) < 2:
        raise DataError(f"the data has {len(records)} records, too few to train and validate on: give at least two.")
    groups = grouped(records)
    if len(groups) < 2:
        raise DataError(
            f"all {len(records):,} records have the same prompt, or responses in common, so that none can be held out: "
            "give at least two different ones."
        )
    order = sorted(groups, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
    held_out = set(_nearest([groups[name] for name in order], val_fraction * len(records)))
    sides: tuple[list[T], list[T]] = [], []
    for number, record in enumerate(records):
        sides[number in held_out].append(record)
    return sides


def _nearest(groups: Sequence[list[int]], share: float) -> Iterable[int]:
    """Members of the groups that fit into the share, one after the other, and of the smallest other one where that
    brings their number nearer to it. Some groups, but not all of them."""
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
    """The numbers of the records that must lie on the same side, under a name that the smallest thing they share
    gives. Records share a group also through others, each of which has something in common with the next."""
    leader: dict[str, str] = {}  # key -> another key of its group, a smaller one; the smallest leads to itself

    def lead(key: str) -> str:
        while leader.setdefault(key, key) != key:
            leader[key] = key = leader[leader[key]]
        return key

    one_for_all = len({_asked(record) for record in records}) == 1  # then it tells no record from another
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
    """The prompt that a record shares with others; a labelled text has none."""
    return "" if isinstance(record, Labelled) else first_question(parts_of(record)[0]).strip()


def _keys(record: Any, asked: str) -> list[str]:
    """What a record shares with those of its group."""
    if isinstance(record, Labelled):
        return [*([f"group {record.group}"] if record.group else []), f"text {record.text.strip()}"]
    _, responses = parts_of(record)
    return [f"prompt {asked}"] if asked or not responses else [f"response {text.strip()}" for text in responses]


def first_question(prompt: PromptText) -> str:
    """What the user says first."""
    if isinstance(prompt, str):
        return prompt
    return next(message.content for message in prompt if message.role == "user")
