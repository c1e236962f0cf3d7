"""The words for what was left out."""

from collections import Counter
from collections.abc import Iterable


def counted(found: Iterable[tuple[str, str]]) -> str:
    """Return how many (kind, place) there are of each kind, and the place of the first.

    For example "2 empty (the first a.txt), 1 binary (b.o)".
    """
    found = list(found)
    first = dict(reversed(found))
    counts = Counter(kind for kind, _ in found)
    return ", ".join(
        f"{count:,} {kind} ({'the first ' if count > 1 else ''}{first[kind]})" for kind, count in counts.items()
    )
