"""npllm on one or several ranks: `python -m benchmarks.peers.npllm_ranks_worker`, which
mpiexec may start.

Rank 0 answers the requests, and the others follow its orders, as in any training.
"""

import os
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

import npllm.kernels  # noqa: F401  (here, not with the first model: the peers' imports are not timed either)
from benchmarks.peers.serving import serve
from npllm.distributed import EndedElsewhere, Ranks, team, together, world
from npllm.model import Architecture
from npllm.optim import BatchConfig, OptimConfig
from npllm.training.config import RunConfig
from npllm.training.interrupts import StopRequest
from npllm.training.length import Phase
from npllm.training.loop import NextTokenGradients, Update, build_state, make_update
from npllm.training.orders import Finish, follow
from npllm.training.spikes import SpikeConfig
from npllm.training.state import LoopState

OBSERVED = 5  # updates in which the share of communication is measured


class Timed:
    """Ranks that add up the seconds which are spent in their operations."""

    def __init__(self, ranks: Ranks):
        self._ranks, self.seconds = ranks, 0.0

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self._ranks, name)
        if not callable(operation):
            return operation

        def timed(*arguments, **options):
            start = time.perf_counter()
            try:
                return operation(*arguments, **options)
            finally:
                self.seconds += time.perf_counter() - start

        return timed


class SameRows:
    """A sampler that gives every batch the same rows. block_size: T."""

    def __init__(self, n_rows: int, block_size: int):
        self.n_rows, self.block_size = n_rows, block_size

    def positions(self, ids: np.ndarray) -> np.ndarray:
        return ids % self.n_rows * (self.block_size + 1)


def build(settings: dict[str, Any]) -> tuple[RunConfig, LoopState, NextTokenGradients]:
    """Return what every rank needs. settings: those of `train`."""
    sizes, rule = dict(settings["model"]), settings["optimizer"]
    vocab_size, (n_rows, T) = sizes.pop("vocab_size"), settings["shape"]
    optim = OptimConfig(
        lr=rule["lr"], min_lr=0.0, warmup_steps=0, beta1=rule["betas"][0], beta2=rule["betas"][1], eps=rule["eps"],
        weight_decay=rule["weight_decay"], grad_clip=settings["grad_clip"],
    )  # fmt: skip
    batch = BatchConfig(size=n_rows, micro_size=settings["micro_size"])
    config = RunConfig(model=Architecture(**sizes), optim=optim, batch=batch, spikes=SpikeConfig(enabled=False))
    state = build_state(config, vocab_size)
    state.model.params.flat[:] = np.memmap(settings["parameters"], np.float32, "r")
    state.optimizer.shard(team())
    tokens, targets = np.fromfile(settings["batch"], np.int64).reshape(2, n_rows, T)
    gradients = NextTokenGradients(config, np.hstack([tokens, targets[:, -1:]]).reshape(-1))
    gradients.sampler = SameRows(n_rows, T)
    return config, state, gradients


def train(held: ExitStack, *, timed_rows: int, **settings):
    """Make updates with one batch, divided into micro-batches and between the ranks.

    batch: as of `npllm_worker`, where each target is the token after. timed_rows: of
    the updates that are timed; those that are checked have all rows. held: closes the
    pipes to the other ranks.
    """
    gates = [Path(settings["parameters"]).with_name(f"gate-{os.getpid()}-{rank}") for rank in range(1, team().size)]
    for gate in gates:
        os.mkfifo(gate)
    team().share((settings, gates))
    with team().common_work():  # if this rank fails, `end` does not wait for the others
        config, state, gradients = build(settings)
        open_gates = [held.enter_context(gate.open("wb", buffering=0)) for gate in gates]

        def step(config: RunConfig = config) -> Update:
            for gate in open_gates:
                gate.write(b".")
            update = make_update(state, config, gradients, Phase(0, None))
            team().share(Finish())
            return update

        first, second = step(), step()
        digest = sha256(state.model.params.flat.tobytes()).hexdigest()
        timed = partial(step, replace(config, batch=replace(config.batch, size=timed_rows)))
        facts = {"loss": first.loss, "grad_norm": first.grad_norm, "second_loss": second.loss}
        return facts | {"params_sha256": digest, "communication": share_of_communication(timed)}, timed


def follow_through(gate: Path, state: LoopState, gradients: NextTokenGradients) -> None:
    """Follow rank 0 in an update for each byte that comes through a named pipe. Between
    two bytes this process sleeps; a rank that waits for orders would look for them, and
    slow the other contenders."""
    with gate.open("rb") as bytes_of_rank_0:
        while bytes_of_rank_0.read(1):
            follow(state, gradients, StopRequest())


def share_of_communication(step: Callable[[], None]) -> float:
    """Return the share of some updates that this rank spends in operations between
    ranks. It includes waiting for slower ranks."""
    step()
    start, before = time.perf_counter(), team().seconds
    for _ in range(OBSERVED):
        step()
    return (team().seconds - before) / (time.perf_counter() - start)


def main() -> None:
    with together(Timed(world())), suppress(EndedElsewhere):
        if team().rank == 0:
            with ExitStack() as held:
                serve({"train": partial(train, held)})
            team().end(0)
        else:
            settings, gates = team().share(None)
            _, state, gradients = build(settings)
            follow_through(gates[team().rank - 1], state, gradients)
            team().share(None)  # which raises EndedElsewhere


if __name__ == "__main__":
    main()
