"""The records of a file: those that can be used, where each of them stands, and what is wrong with the others.

Nothing is refused while a file is read, so that one message can name everything that is wrong with it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from npllm.data.counted import counted
from npllm.errors import DataError

MOST_LISTED = 20  # bad records; of the others a message gives the number

Record = TypeVar("Record")


class Unusable(Exception):
    """A record cannot be used. kind: the words that such records are counted under, as in "6 equal pairs"."""

    def __init__(self, kind: str, complaint: str):
        super().__init__(complaint)
        self.kind = kind


class Bad(NamedTuple):
    """A record that cannot be used. place: as in "line 25". complaint: what is wrong, and the mend."""

    place: str
    kind: str
    complaint: str


@dataclass(frozen=True)
class RecordFile(Generic[Record]):
    """The usable records with the place of each, and the bad ones, in the order of the file."""

    path: Path
    records: list[Record]
    places: list[str]
    bad: list[Bad]

    def map(self, change: Callable[[Record], Record]) -> "RecordFile[Record]":
        """The same file with every usable record changed; one whose change raises Unusable is bad as well."""
        changed = sort_out(self.path, zip(self.places, self.records, strict=True), change)
        found = [*self.bad, *changed.bad]
        return replace(changed, bad=sorted(found, key=lambda bad: int(bad.place.split()[-1])))

    def checked(self, mend: str = "") -> list[Record]:
        """All records. Raises DataError that lists the bad ones, and for a file that holds none.

        mend: what can be done about bad records besides mending the file, as a sentence.
        """
        if self.bad:
            raise DataError(self._complaint(mend))
        if not self.records:
            raise DataError(f"{self.path} holds no records: give a file with at least one.")
        return self.records

    def left_out(self) -> str:
        """How many bad records there are, of each kind, with the place of its first one; "" when there are none."""
        kinds = counted((bad.kind, bad.place) for bad in self.bad)
        total = len(self.records) + len(self.bad)
        return f"{len(self.bad):,} of {total:,} records are left out: {kinds}" if kinds else ""

    def _complaint(self, mend: str) -> str:
        lines = [f"{bad.place}: {bad.complaint}" for bad in self.bad]
        if not self.records and len({bad.complaint for bad in self.bad}) == 1:  # a file of another kind
            return f"{self.path} {lines[0]}" + (f" So it is in all {len(lines):,} records." if len(lines) > 1 else "")
        mend = mend and f" {mend}"
        if len(lines) == 1:
            return f"{self.path} {lines[0]}{mend}"
        head = f"{self.path} has {len(lines):,} bad records of {len(self.records) + len(lines):,}.{mend}"
        rest = [f"and {len(lines) - MOST_LISTED:,} more"] if len(lines) > MOST_LISTED else []
        return "\n  ".join([head, *lines[:MOST_LISTED], *rest])


def sort_out(path: Path, items: Iterable[tuple[str, object]], record: Callable[[object], Record]) -> RecordFile[Record]:
    """What `record` makes of each (place, item), and those about which it raises Unusable."""
    found: RecordFile[Record] = RecordFile(path, [], [], [])
    for place, item in items:
        try:
            made = record(item)
        except Unusable as error:
            found.bad.append(Bad(place, error.kind, str(error)))
        else:
            found.records.append(made)
            found.places.append(place)
    return found
