"""Whether this process works alone now, or with the other ranks.

A process of several ranks also has work of its own: rank 0 evaluates and writes
reports, in which models may be trained, while the other ranks wait. So the gradient of
a batch is divided between the ranks only inside `together`.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from npllm.distributed.ranks import ALONE, Ranks

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
