"""The ranks of a training, and the collective operations that it needs, on MPI.

Every rank calls the same operations in the same order. An array whose pieces the ranks
have is collected by recursive doubling: first between the ranks at the largest
distance, whose pieces are neighbours, and then at half of it. That is the opposite
order of the sums in `reduction.py`.

Source: Thakur, Rabenseifner & Gropp, "Optimization of collective communication
operations in MPICH", 2005.
"""

import pickle
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np

from npllm.distributed.pieces import piece_of
from npllm.distributed.pulse import Pulse
from npllm.distributed.ranks import EndedElsewhere, Ranks
from npllm.errors import NpllmError

T = TypeVar("T")
SHORT_NAP, LONG_NAP = 2e-5, 1e-3  # seconds between two looks at a message
BRISK = 200  # looks without a nap: a message that is on its way takes microseconds


class _End:
    """What rank 0 sends in place of a value when the job ends."""

    def __init__(self, exit_code: int):
        self.exit_code = exit_code


class MPIRanks(Ranks):
    """The operations of one rank of several, on an MPI communicator.

    comm: a communicator of mpi4py, whose size is a power of two. names: the machine of
    each rank.
    """

    def __init__(self, comm: Any, names: Sequence[str]):
        self.comm, self.names, self.pulse = comm, names, Pulse(comm.Dup(), names)
        self.rank, self.size = comm.rank, comm.size
        self.on_this_host = list(names).count(names[self.rank])
        self._in_common_work = False

    def share(self, value: T | None) -> T:
        value = self._from_rank_0(value)
        if isinstance(value, _End):
            self.pulse.end()
            raise EndedElsewhere(value.exit_code)
        return value

    def _from_rank_0(self, value: Any) -> Any:
        content = np.frombuffer(pickle.dumps(value), np.uint8) if self.rank == 0 else None
        length = np.array([0 if content is None else len(content)], np.int64)
        self.wait(self.comm.Ibcast(length))
        if content is None:
            content = np.empty(length[0], np.uint8)
        self.wait(self.comm.Ibcast(content))
        return pickle.loads(content)  # between the ranks of one job, which run the same program

    def share_array(self, array: np.ndarray) -> None:
        self.wait(self.comm.Ibcast(array.reshape(-1).view(np.uint8)))

    def gather(self, value: T) -> list[T]:
        content = np.frombuffer(pickle.dumps(value), np.uint8)
        lengths = np.empty(self.size, np.int64)
        self.wait(self.comm.Iallgather(np.array([len(content)], np.int64), lengths))
        contents = np.empty(lengths.sum(), np.uint8)
        ends = np.cumsum(lengths)
        self.wait(self.comm.Iallgatherv(content, [contents, (lengths, ends - lengths)]))
        return [pickle.loads(part) for part in np.split(contents, ends[:-1])]

    def agree(self, action: Callable[[], T]) -> T:
        result, error = None, None
        with self.common_work():
            try:
                result = action()
            except NpllmError as raised:
                error = raised
            failures = [(rank, each) for rank, each in enumerate(self.gather(error)) if each is not None]
        if not failures:
            return result
        if self.rank:
            self.share(None)  # which raises EndedElsewhere
        rank, first = failures[0]
        if rank:
            first.message = f"Rank {rank}, on {self.names[rank]}: {first.message}"
        raise first

    def collect(self, flat: np.ndarray, cuts: Sequence[int]) -> None:
        first, distance = piece_of(self.rank, self.size), self.size // 2
        width = 1
        while distance:
            other = first ^ width  # the pieces are a complete binary tree, too
            spans = [slice(cuts[each], cuts[each + width]) for each in (first, other)]
            self._exchange(self.rank ^ distance, *(flat[span] for span in spans))
            first, width, distance = min(first, other), 2 * width, distance // 2

    def bring(self, whole: np.ndarray | None, own: np.ndarray, cuts: Sequence[int]) -> None:
        if self.rank:
            self._exchange(0, own, None)
            return
        for rank, piece in self._pieces(whole, cuts):
            if rank:
                self._exchange(rank, None, piece)
            else:
                piece[:] = own

    def hand_out(self, whole: np.ndarray | None, own: np.ndarray, cuts: Sequence[int]) -> None:
        if self.rank:
            self._exchange(0, None, own)
            return
        for rank, piece in self._pieces(whole, cuts):
            if rank:
                self._exchange(rank, piece, None)
            else:
                own[:] = piece

    def _pieces(self, whole: np.ndarray, cuts: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Every rank and its piece of an array."""
        for rank in range(self.size):
            piece = piece_of(rank, self.size)
            yield rank, whole[cuts[piece] : cuts[piece + 1]]

    def _exchange(self, partner: int, sent: np.ndarray | None, received: np.ndarray | None) -> None:
        """Send an array to another rank and receive one from it; None = nothing."""
        for request in self.post(partner, sent, received):
            self.wait(request)

    def post(self, partner: int, sent: np.ndarray | None, received: np.ndarray | None, tag: int = 0) -> list[Any]:
        requests = []
        if received is not None and len(received):
            requests.append(self.comm.Irecv(received.view(np.uint8), partner, tag))
        if sent is not None and len(sent):
            requests.append(self.comm.Isend(sent.view(np.uint8), partner, tag))
        return requests

    def wait(self, request: Any) -> None:
        """Wait until an operation is done. The nap between two looks leaves the core to
        others, and lets Python's signal handlers run."""
        looks = 0
        while not request.Test():
            looks += 1
            if looks > BRISK:
                time.sleep(SHORT_NAP if looks < 10 * BRISK else LONG_NAP)

    @contextmanager
    def common_work(self) -> Iterator[None]:
        self._in_common_work = True
        yield
        self._in_common_work = False

    def end(self, exit_code: int) -> None:
        if self.rank or self._in_common_work:
            self.abort(exit_code)
        self._from_rank_0(_End(exit_code))
        self.pulse.end()

    def abort(self, exit_code: int) -> None:
        sys.stderr.flush()
        self.comm.Abort(exit_code)
