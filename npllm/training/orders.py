"""How several ranks train one run: rank 0 leads, and the others follow its orders.

Rank 0 alone decides: which samples are next, whether an update is a spike, when to
save, and when to end. It alone reads and writes the files of the run while it trains.
The other ranks have a copy of the state, compute their part of every gradient, and make
the same updates. So all ranks agree, whatever happens, and a run has the same bits
with any number of them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from npllm.distributed import team
from npllm.model import Model
from npllm.training.interrupts import StopRequest
from npllm.training.state import LoopState


class ComputeGradient(NamedTuple):
    """Compute the gradient of a batch. ids: (rows,). step: the update's number. judged:
    whether the moments are looked at, too."""

    ids: np.ndarray
    step: int
    judged: bool


class MakeUpdate(NamedTuple):
    """Let the optimiser make an update from the gradient."""

    lr: float
    grad_clip: float
    norm: float


class TakeState(NamedTuple):
    """Take over the state of rank 0, which has restored a checkpoint."""


class BringMoments(NamedTuple):
    """Bring this rank's moments to rank 0. changed: it changes them, and hands them out
    again."""

    changed: bool


class SaySignals(NamedTuple):
    """Say whether somebody has asked this rank to stop."""


class Finish(NamedTuple):
    """The training has ended."""


def follow(state: LoopState, gradients: Callable[[Model, np.ndarray, int], object], stop: StopRequest) -> None:
    """Do what rank 0 orders, until the training ends. Raises EndedElsewhere when rank 0
    ends the job."""
    ranks, optimizer = team(), state.optimizer
    while True:
        match ranks.share(None):
            case ComputeGradient(ids, step, judged):
                gradients(state.model, ids, step)
                optimizer.gradient_norm()
                if judged:
                    broken_moment(state)
            case MakeUpdate(lr, grad_clip, norm):
                optimizer.step(lr=lr, grad_clip=grad_clip, norm=norm)
            case BringMoments(changed):
                with optimizer.whole_state(changes=changed):
                    ranks.share(None)  # rank 0 has done with them
            case TakeState():
                _take_state(state)
            case SaySignals():
                ranks.gather(stop.requested)
            case Finish():
                return


@contextmanager
def whole_moments(state: LoopState, *, changes: bool = False) -> Iterator[None]:
    """In the block rank 0 has the whole moments, to save or, with `changes`, to restore
    them."""
    team().share(BringMoments(changes))
    with state.optimizer.whole_state(changes=changes):
        yield
        team().share(None)


def broken_moment(state: LoopState) -> str | None:
    """The name of the first moment that holds a NaN or an infinity on any rank; None if
    there is none."""
    found = team().gather(state.not_finite(state.optimizer.state_names))
    return next((name for name in found if name), None)


def give_state(state: LoopState) -> None:
    """Let every other rank take over the state of rank 0."""
    if team().size > 1:
        team().share(TakeState())
        with team().common_work():
            _take_state(state)


def _take_state(state: LoopState) -> None:
    """Set the state to that of rank 0."""
    counters = team().share(state.counters())
    for name, array in state.arrays().items():
        if name not in state.optimizer.state_names:  # those are divided
            team().share_array(array)
    if team().rank:
        state.restore(state.arrays(), counters)


def is_stop_requested(stop: StopRequest) -> bool:
    """Whether somebody has asked any rank to stop."""
    if team().size == 1:
        return stop.requested
    team().share(SaySignals())
    return any(team().gather(stop.requested))
