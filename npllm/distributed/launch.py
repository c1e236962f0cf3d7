"""Whether mpiexec started this process, and the ranks of its job.

A launcher tells each process in environment variables how many it has started, and how
many of them on its machine. MPI is only imported where one has started several, so a
single process needs neither mpi4py nor an MPI library.
"""

import os
import shutil
import signal
import socket
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from npllm.distributed.ranks import ALONE, Ranks
from npllm.errors import ConfigError, NpllmError, ResourceError

# MPICH and Intel MPI (Hydra), Open MPI, MVAPICH.
SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
RANKS = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK", "PMIX_RANK")
LOCAL_SIZES = ("MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE")
LOCAL_RANKS = ("MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK")
LONGEST_SHOWN = 160  # characters of two values that differ
SHARED_MEMORY = Path("/dev/shm")
LEAST_SHARED_MEMORY = 32 << 20  # bytes free for each rank: through them the ranks of a machine talk


def promised_size(environment: Mapping[str, str] = os.environ) -> int | None:
    """Return how many ranks the launcher says that it has started; None = no launcher,
    or one that does not say."""
    return _number(SIZES, environment)


def promised_rank(environment: Mapping[str, str] = os.environ) -> int:
    """Return the rank that the launcher gave to this process; 0 without a launcher."""
    return _number(RANKS, environment) or 0


def on_several_machines(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether the launcher says that it has started ranks on other machines,
    too."""
    size, local = promised_size(environment), _number(LOCAL_SIZES, environment)
    return size is not None and local is not None and local < size


def is_first_here(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether this process is the first of its machine."""
    return _number(LOCAL_RANKS, environment) == 0


def _number(names: Sequence[str], environment: Mapping[str, str]) -> int | None:
    """The first of some variables that has a number."""
    return next((int(environment[name]) for name in names if environment.get(name, "").isdecimal()), None)


def is_launched(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether a launcher has started this process as one of several."""
    size = promised_size(environment)
    return size > 1 if size is not None else "PMIX_RANK" in environment


@cache
def world() -> Ranks:
    """Return the ranks of this process's job.

    Raises ConfigError where the launcher and the MPI library do not belong together,
    and where the ranks differ; ResourceError where they cannot talk.
    """
    if not is_launched():
        return ALONE
    with this_machine_takes_part():
        comm = _world_communicator()
    size = promised_size()
    if size is not None and comm.size != size:
        raise ConfigError(
            f"mpiexec has started {size} processes, but each of them is rank {comm.rank} of {comm.size}: this mpiexec "
            f"and the MPI library of mpi4py do not belong together; use the mpiexec of that library{_where()}."
        )
    if comm.size == 1:
        return ALONE
    if comm.size & (comm.size - 1):
        raise ConfigError(
            f"mpiexec has started {comm.size} ranks, which is no power of two; start {1 << comm.size.bit_length() - 1}."
        )
    from npllm.distributed.mpi_ranks import MPIRanks

    return MPIRanks(comm, comm.allgather(socket.gethostname()))


def check_alike(ranks: Ranks, facts: Mapping[str, str]) -> None:
    """Raise ConfigError if a fact is not the same on every rank. facts: by name."""
    (_, first), *others = ranks.gather((socket.gethostname(), dict(facts)))

    def compare() -> None:
        for rank, (host, other) in enumerate(others, 1):
            for name, value in first.items():
                if other[name] != value:
                    shown = f" ({other[name]}, not {value})" if len(other[name]) + len(value) < LONGEST_SHOWN else ""
                    raise ConfigError(
                        f"Rank {rank}, on {host}, has another {name} than rank 0{shown}, so it would not compute the "
                        "same bits; make it the same for all ranks."
                    )

    ranks.agree(compare)


def joined() -> Ranks:
    """Return the ranks of this process's job, if it has joined them already."""
    return world() if world.cache_info().currsize else ALONE


@contextmanager
def this_machine_takes_part() -> Iterator[None]:
    """In the block an NpllmError is of this machine. Where a job has others, the first
    rank here says what is wrong, and ends the job: the other machines wait for it."""
    try:
        yield
    except NpllmError as error:
        if not on_several_machines():
            raise
        if is_first_here():
            print(f"npllm: rank {promised_rank()}, on {socket.gethostname()}: {error.message}", file=sys.stderr)
        end_by_signal()


def end_by_signal() -> None:
    """End this process, and so its job.

    mpiexec ends all processes when a signal has ended one of them. After an exit it may
    wait for other machines for ever, and so may MPI_Abort for one that is lost.
    """
    sys.stderr.flush()
    os.kill(os.getpid(), signal.SIGKILL)


def _world_communicator() -> Any:
    """Start MPI, where nothing stands in its way."""
    _check_host_name()
    _check_shared_memory()
    try:
        with warnings.catch_warnings(action="ignore"):  # about another mpiexec: `world` says it in a sentence
            from mpi4py import MPI
    except ModuleNotFoundError as error:
        raise ConfigError(
            "mpiexec has started several processes, but mpi4py is not installed; pip install 'npllm[mpi]', or start "
            "npllm without mpiexec."
        ) from error
    except (ImportError, RuntimeError) as error:  # it finds no MPI library
        reason = " ".join(str(error).split())
        raise ConfigError(f"mpi4py cannot load an MPI library ({reason:.200}); pip install mpich.") from error
    return MPI.COMM_WORLD


def _where() -> str:
    """The mpiexec beside the interpreter, in words; empty if there is none."""
    found = shutil.which("mpiexec", path=str(Path(sys.executable).parent))
    return f", {found}" if found else ""


def _check_host_name() -> None:
    name = socket.gethostname()
    try:
        socket.getaddrinfo(name, None)
    except OSError as error:
        raise ConfigError(
            f"The name of this machine, {name}, has no address ({error.strerror}), so ranks cannot find each other; "
            f"add a line 127.0.1.1 {name} to /etc/hosts, or the machine's address if there are several machines."
        ) from error


def _check_shared_memory(folder: Path = SHARED_MEMORY) -> None:
    if not folder.is_dir():
        return
    free, needed = shutil.disk_usage(folder).free, LEAST_SHARED_MEMORY * (promised_size() or 2)
    if free < needed:
        raise ResourceError(
            f"{folder} has {free / 1e6:.0f} MB free, but the ranks need {needed / 1e6:.0f} MB to talk to each other; "
            "make it larger (mount -o remount,size=1G /dev/shm; of a container: --shm-size=1g)."
        )
