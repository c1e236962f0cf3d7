"""How several ranks train one run: rank 0 leads, and the others follow its orders.

Rank 0 alone decides: which samples are next, whether an update is a spike, when to
save, and when to end. It alone reads and writes the files of the run while it trains.
The other ranks have a copy of the state, compute their part of every gradient, and make
the same updates. So all ranks agree, whatever happens, and a run has the same bits
with any number of them.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from npllm.distributed import team
from npllm.model import Model
from npllm.training.interrupts import StopRequest
from npllm.training.state import LoopState


class ComputeGradient(NamedTuple):
    """Compute the gradient of a batch. ids: (rows,). step: the update's number."""

    ids: np.ndarray
    step: int


class MakeUpdate(NamedTuple):
    """Let the optimiser make an update from the gradient."""

    lr: float
    grad_clip: float
    norm: float


class TakeState(NamedTuple):
    """Take over the state of rank 0, which has restored a checkpoint."""


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
            case ComputeGradient(ids, step):
                gradients(state.model, ids, step)
                optimizer.gradient_norm()
            case MakeUpdate(lr, grad_clip, norm):
                optimizer.step(lr=lr, grad_clip=grad_clip, norm=norm)
            case TakeState():
                _take_state(state)
            case SaySignals():
                ranks.gather(stop.requested)
            case Finish():
                return


def give_state(state: LoopState) -> None:
    """Let every other rank take over the state of rank 0."""
    if team().size > 1:
        team().share(TakeState())
        with team().common_work():
            _take_state(state)


def _take_state(state: LoopState) -> None:
    """Set the state to that of rank 0."""
    counters = team().share(state.counters())
    for array in state.arrays().values():
        team().share_array(array)
    if team().rank:
        state.restore(state.arrays(), counters)


def is_stop_requested(stop: StopRequest) -> bool:
    """Whether somebody has asked any rank to stop."""
    if team().size == 1:
        return stop.requested
    team().share(SaySignals())
    return any(team().gather(stop.requested))
