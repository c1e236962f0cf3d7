"""Whether this process works alone now, or with the other ranks.

A process of several ranks also has work of its own: rank 0 evaluates and writes
reports, in which models may be trained, while the other ranks wait. So the gradient of
a batch is divided between the ranks only inside `together`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from npllm.distributed.ranks import ALONE, Ranks

Item, Result = TypeVar("Item"), TypeVar("Result")
_current: Ranks = ALONE


def team() -> Ranks:
    """Return the ranks that work on the present batch together."""
    return _current


@contextmanager
def together(ranks: Ranks) -> Iterator[None]:
    """In the block, batches are divided between these ranks."""
    global _current
    before, _current = _current, ranks
    try:
        yield
    finally:
        _current = before


def share_out(items: Sequence[Item], work: Callable[[Item], Result]) -> list[Result]:
    """Return the result of the work on each item, on every rank of the team.

    Each rank does the work on some of the items.
    """
    ranks = team()
    found = ranks.gather([work(item) for item in items[ranks.rank :: ranks.size]])
    return [found[number % ranks.size][number // ranks.size] for number in range(len(items))]
