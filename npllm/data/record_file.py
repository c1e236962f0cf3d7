"""The usable and the bad records of a file, with the place of each.

Reading does not stop at a bad record, so that one message can name everything that is
wrong with the file.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from npllm.data.counted import counted
from npllm.errors import DataError

MOST_LISTED = 20  # bad records that a message lists; it counts the others

Record = TypeVar("Record")


class Unusable(Exception):
    """A record cannot be used.

    kind: the words under which such records are counted, as in "6 equal pairs".
    """

    def __init__(self, kind: str, complaint: str):
        super().__init__(complaint)
        self.kind = kind


class Bad(NamedTuple):
    """A record that cannot be used.

    place: as in "line 25". complaint: what is wrong, and what to do.
    """

    place: str
    kind: str
    complaint: str


@dataclass(frozen=True)
class RecordFile(Generic[Record]):
    """The usable and the bad records of a file, in order, with the place of each."""

    path: Path
    records: list[Record]
    places: list[str]
    bad: list[Bad]

    def map(self, change: Callable[[Record], Record]) -> "RecordFile[Record]":
        """Return the file with `change` applied to every usable record.

        A record for which `change` raises Unusable becomes a bad one.
        """
        changed = sort_out(self.path, zip(self.places, self.records, strict=True), change)
        found = [*self.bad, *changed.bad]
        return replace(changed, bad=sorted(found, key=lambda bad: int(bad.place.split()[-1])))

    def checked(self, mend: str = "") -> list[Record]:
        """Return all records.

        Raises DataError that lists the bad records, and for a file without records.
        mend: a sentence that says what the user can do besides correcting the file.
        """
        if self.bad:
            raise self._complaint(mend)
        if not self.records:
            raise DataError(f"{self.path} holds no records; give a file with at least one.")
        return self.records

    def left_out(self) -> str:
        """Return a sentence that counts the bad records of each kind, or "".

        It names the place of the first record of each kind.
        """
        kinds = counted((bad.kind, bad.place) for bad in self.bad)
        total = len(self.records) + len(self.bad)
        return f"{len(self.bad):,} of {total:,} records are left out: {kinds}" if kinds else ""

    def _complaint(self, mend: str) -> DataError:
        lines = [f"{bad.place}: {bad.complaint}" for bad in self.bad]
        if not self.records and len({bad.complaint for bad in self.bad}) == 1:  # a file of another kind
            same = f" The same holds for all {len(lines):,} records." if len(lines) > 1 else ""
            return DataError(f"{self.path} {lines[0]}{same}")
        mend = mend and f" {mend}"
        if len(lines) == 1:
            return DataError(f"{self.path} {lines[0]}{mend}")
        head = f"{self.path} has {len(lines):,} bad records of {len(self.records) + len(lines):,}.{mend}"
        rest = [f"and {len(lines) - MOST_LISTED:,} more"] if len(lines) > MOST_LISTED else []
        return DataError(head, [*lines[:MOST_LISTED], *rest])


def sort_out(path: Path, items: Iterable[tuple[str, object]], record: Callable[[object], Record]) -> RecordFile[Record]:
    """Apply `record` to each (place, item).

    An item for which it raises Unusable becomes a bad record.
    """
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
