"""npllm with planted faults: FAULTS ARGUMENTS...

FAULTS is a JSON object: names of the functions below, and their arguments. A fault
comes after an update or with certain data, so it does not depend on how busy the
machine is.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from signal import SIGKILL

from npllm.cli import main
from npllm.distributed import launch, promised_rank, pulse
from npllm.model import GPT
from npllm.optim import Optimizer
from npllm.training import machine

SHARP = 2  # the token "#" in the text of the tests: a character's id is its place in order
FOLD = 50


def signal(rank: int, update: int, number: int, waits: int = 0) -> None:
    """A rank gets a signal when it has made an update and has then waited so many times
    for other ranks: amid a gradient's sum, an evaluation or a checkpoint."""
    if promised_rank() != rank:
        return
    from npllm.distributed.mpi_ranks import MPIRanks

    wait = MPIRanks.wait
    is_made, left = False, waits

    def arrive() -> None:
        if is_made and left == 0:
            os.kill(os.getpid(), number)

    def step_is_made(updates: int) -> None:
        nonlocal is_made
        if updates == update:
            is_made = True
            arrive()

    def wait_and_arrive(self, request):
        nonlocal left
        wait(self, request)
        if is_made:
            left -= 1
            arrive()

    after_each_step(step_is_made)
    MPIRanks.wait = wait_and_arrive


def fail(rank: int, update: int) -> None:
    """A rank has no memory left, after an update."""

    def run_out(updates: int) -> None:
        if promised_rank() == rank and updates == update:
            raise MemoryError

    after_each_step(run_out)


def cramped(rank: int) -> None:
    """The machine of a rank has no shared memory left."""
    if promised_rank() == rank:
        launch.LEAST_SHARED_MEMORY = 1 << 60


def lose_machine(rank: int, update: int, cable: str) -> None:
    """The machine of a rank is lost, after an update: nothing comes from its address
    any more, not even that its processes have ended."""

    def lose(updates: int) -> None:
        if promised_rank() == rank and updates == update:
            subprocess.run(["ip", "address", "flush", "dev", cable], check=True)
            for process in (os.getppid(), os.getpid()):  # its part of mpiexec, and the rank
                os.kill(process, SIGKILL)

    after_each_step(lose)


def impatient() -> None:
    """A rank that is silent is given up early, when there is a run to go on with. On a
    busy machine that may happen without a fault."""

    def lower(_: int) -> None:
        pulse.BEAT, pulse.LONGEST_SILENCE = 0.2, 3.0

    after_each_step(lower)


def after_each_step(call: Callable[[int], None]) -> None:
    """Call with the number of updates made, after each that several ranks make."""
    step = Optimizer.step

    def step_and_call(self, **options):
        norm = step(self, **options)
        if self._ranks.size > 1:  # the preparation makes updates of its own
            call(self.updates)
        return norm

    Optimizer.step = step_and_call


def poison() -> None:
    """A micro-batch that has a "#" counts 50 times."""
    loss_and_grad = GPT.loss_and_grad

    def fifty_fold(self, tokens, targets, *, n_targets=None, **options):
        if n_targets is not None and (tokens == SHARP).any():
            n_targets //= FOLD
        return loss_and_grad(self, tokens, targets, n_targets=n_targets, **options)

    GPT.loss_and_grad = fifty_fold


def bf16() -> None:
    """Training in bf16 is allowed on any processor. One that has no products of
    bfloat16 computes the same sums in another way."""
    machine.HAS_BFLOAT16_DOT = True


if __name__ == "__main__":
    for name, arguments in json.loads(sys.argv[1]).items():
        globals()[name](*arguments)
    sys.exit(main(sys.argv[2:]))
