"""The sum of a gradient over the ranks, while the rest of it is still computed.

The order of the additions is that of `tree.py`: first between ranks at a distance of 1,
then of 2, 4 and so on. Recursive halving does this without sending anything twice: of
each pair of ranks, one adds the left half of what both still add, and the other one the
right half. At the end each rank has the whole sum of its own piece (`pieces.py`), and
remains of partial sums elsewhere. Every element is added in the order of the tree,
however the array is cut.

The array is cut into spans, such as the matrices of one block. A span is sent as soon
as this rank's part of it is final. Its messages travel while the backward pass goes on
with the block below.

Source: Thakur, Rabenseifner & Gropp, "Optimization of collective communication
operations in MPICH", 2005 (recursive halving); Li et al., "PyTorch Distributed:
experiences on accelerating data parallel training", 2020 (overlap).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from npllm.distributed.ranks import Ranks


class Reduction:
    """One sum over the ranks.

    flat: (n,), what this rank adds. received: an array like it, for what other ranks
    send; None for a process that is alone. Of both, a span is free until it is started.
    cuts: where the pieces of the ranks begin, and n. present: for each rank whether it
    has anything to add. spans: parts of flat that cover it, by name. All ranks give the
    same cuts, present and spans, and start the spans in any order.
    """

    def __init__(
        self,
        ranks: Ranks,
        flat: np.ndarray,
        received: np.ndarray | None,
        cuts: Sequence[int],
        present: Sequence[bool],
        spans: Mapping[str, slice],
    ):
        self.ranks, self.flat, self.received = ranks, flat, received
        self.cuts, self.present, self.spans = cuts, present, spans
        self.left = dict.fromkeys(spans)  # names of spans that are not started
        self._started: dict[str, _Started] = {}

    def start(self, name: str) -> None:
        """Add a span, which is final in flat. Its messages are under way afterwards."""
        del self.left[name]
        self._started[name] = _Started(self._steps(self.spans[name], tag=1 + list(self.spans).index(name)))
        for started in self._started.values():
            started.go_on()

    def finish(self) -> None:
        """Start the spans that are left, and return when this rank's piece is added."""
        for name in list(self.left):
            self.start(name)
        for name in self.spans:  # the same order on all ranks, so that none waits for ever
            self._started[name].finish(self.ranks)

    def _steps(self, span: slice, tag: int) -> Iterator[list[Any]]:
        """Add a span. Yields the requests that must be complete before the next
        step."""
        ranks, flat, received = self.ranks, self.flat, self.received
        first, end, distance = 0, ranks.size, 1  # the pieces that this rank still adds
        while distance < ranks.size:
            partner, mid = ranks.rank ^ distance, (first + end) // 2
            (first, end), given = ((mid, end), (first, mid)) if ranks.rank & distance else ((first, mid), (mid, end))
            kept, sent = self._inside(span, first, end), self._inside(span, *given)
            mine, theirs = (self._any_present(rank, distance) for rank in (ranks.rank, partner))
            yield ranks.post(partner, flat[sent] if mine else None, received[kept] if theirs else None, tag)
            if mine and theirs:
                flat[kept] += received[kept]
            elif theirs:
                flat[kept] = received[kept]
            distance *= 2

    def _inside(self, span: slice, first: int, end: int) -> slice:
        """What lies in a span of the pieces first, ..., end - 1. It may be empty."""
        start = max(span.start, self.cuts[first])
        return slice(start, max(start, min(span.stop, self.cuts[end])))

    def _any_present(self, rank: int, distance: int) -> bool:
        """Whether there is a sum of the ranks whose sums a rank has when it turns to
        one at this distance."""
        group = rank // distance * distance
        return any(self.present[group : group + distance])


class _Started:
    """The steps of a span that are left, and the requests of the present one."""

    def __init__(self, steps: Iterator[list[Any]]):
        self.steps = steps
        self.requests = next(steps, None)

    def go_on(self) -> None:
        """Make every step whose messages have arrived, and wait for none."""
        while self.requests is not None and all(request.Test() for request in self.requests):
            self.requests = next(self.steps, None)

    def finish(self, ranks: Ranks) -> None:
        while self.requests is not None:
            for request in self.requests:
                ranks.wait(request)
            self.requests = next(self.steps, None)
