"""The operations of a process that trains alone; `mpi_ranks.py` has those of a job."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from npllm.errors import NpllmError

if TYPE_CHECKING:  # `npllm --help` stays quick
    import numpy as np

T = TypeVar("T")


class EndedElsewhere(NpllmError):
    """Rank 0 has ended the job and said why. exit_code: that of rank 0."""

    def __init__(self, exit_code: int):
        super().__init__()
        self.exit_code = exit_code


class Ranks:
    """The collective operations of one rank: here, of the only one.

    rank: 0, ..., size - 1. on_this_host: how many ranks share this machine.
    """

    rank, size, on_this_host = 0, 1, 1

    def share(self, value: T | None) -> T:
        """Return rank 0's value on every rank. Raises EndedElsewhere when rank 0 has
        ended the job instead."""
        return value

    def share_array(self, array: "np.ndarray") -> None:
        """Set an array to rank 0's. It has the same shape and dtype on every rank."""

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks, in their order."""
        return [value]

    def agree(self, action: Callable[[], T]) -> T:
        """Run an action on every rank, and return this rank's result.

        Where it fails on any rank, rank 0 raises the first error, with the name of its
        rank, and the other ranks end.
        """
        return action()

    def post(self, partner: int, sent: "np.ndarray | None", received: "np.ndarray | None", tag: int = 0) -> list[Any]:
        """Start to send an array to another rank and to receive one from it.

        None = nothing. tag: tells exchanges apart that are under way at once. Returns
        the requests to `wait` for; they have a method `Test`, as in MPI.
        """
        return []

    def wait(self, request: Any) -> None:
        """Wait until a request of `post` is complete."""

    def collect(self, flat: "np.ndarray", cuts: Sequence[int]) -> None:
        """Set every piece of an array to that of its owner, on every rank.

        flat: (n,). cuts: where the pieces begin, and n; pieces.py says whose they are.
        """

    def bring(self, whole: "np.ndarray | None", own: "np.ndarray", cuts: Sequence[int]) -> None:
        """Bring the pieces of an array to rank 0.

        whole: (n,), where they arrive; None on other ranks. own: this rank's piece.
        """

    def hand_out(self, whole: "np.ndarray | None", own: "np.ndarray", cuts: Sequence[int]) -> None:
        """Set each rank's piece to that of rank 0's array; the opposite of `bring`."""

    @contextmanager
    def common_work(self) -> Iterator[None]:
        """In the block the other ranks count on this one. If an error leaves it, `end`
        aborts the job, because they cannot be told."""
        yield

    def end(self, exit_code: int) -> None:
        """End the job. Called by rank 0 when it has nothing more to do, and by another
        rank when it has failed.

        The ranks that wait in `share` then raise EndedElsewhere.
        """

    def abort(self, exit_code: int) -> None:
        """End the processes of all ranks at once."""


ALONE = Ranks()
