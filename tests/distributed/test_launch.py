"""What npllm says of a job before anything is trained."""

import socket
from types import SimpleNamespace

import pytest
from jobs import job, needs_mpi
from small_runs import pretrain_arguments, refused, write_text

from npllm.distributed import Ranks, launch
from npllm.distributed.launch import check_alike, is_launched, promised_rank, promised_size, world
from npllm.errors import ConfigError, ResourceError


@pytest.fixture(autouse=True)
def joins_anew():
    world.cache_clear()
    yield
    world.cache_clear()


@pytest.mark.parametrize(
    ("environment", "size", "rank", "launched"),
    [
        ({}, None, 0, False),
        ({"PMI_SIZE": "1", "PMI_RANK": "0"}, 1, 0, False),
        ({"PMI_SIZE": "4", "PMI_RANK": "3"}, 4, 3, True),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}, 2, 1, True),
        ({"PMIX_RANK": "2"}, None, 2, True),
    ],
    ids=str,
)
def test_what_launchers_promise(environment, size, rank, launched):
    assert promised_size(environment) == size
    assert promised_rank(environment) == rank
    assert is_launched(environment) == launched


@pytest.mark.parametrize(
    ("environment", "several", "first"),
    [
        ({}, False, False),
        ({"PMI_SIZE": "4", "MPI_LOCALNRANKS": "4", "MPI_LOCALRANKID": "0"}, False, True),
        ({"PMI_SIZE": "4", "MPI_LOCALNRANKS": "2", "MPI_LOCALRANKID": "1"}, True, False),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, True, False),
        ({"PMIX_RANK": "2"}, False, False),
    ],
    ids=str,
)
def test_what_launchers_say_of_machines(environment, several, first):
    assert launch.on_several_machines(environment) == several
    assert launch.is_first_here(environment) == first


@pytest.mark.parametrize(("local_rank", "speaks"), [("0", True), ("1", False)])
def test_a_machine_that_cannot_take_part_ends_the_job(monkeypatch, capsys, local_rank, speaks):
    environment = {"PMI_SIZE": "8", "PMI_RANK": "5", "MPI_LOCALNRANKS": "4", "MPI_LOCALRANKID": local_rank}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    class Ended(Exception):
        """What stands for the signal."""

    def end():
        raise Ended

    monkeypatch.setattr(launch, "end_by_signal", end)
    with pytest.raises(Ended), launch.this_machine_takes_part():
        raise ConfigError("It has no memory.")
    assert capsys.readouterr().err.endswith(": It has no memory.\n") == speaks


def test_the_mpiexec_of_another_library(tmp_path, monkeypatch, capsys):
    """Without the check, each process would train the same run alone."""
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setattr(launch, "_world_communicator", lambda: SimpleNamespace(rank=0, size=1))
    said = refused(capsys, *pretrain_arguments(write_text(tmp_path), tmp_path / "run"), exit_code=2)
    assert "mpiexec has started 2 processes, but each of them is rank 0 of 1" in said
    assert not (tmp_path / "run").exists()


def test_three_ranks(monkeypatch, capsys):
    monkeypatch.setenv("PMI_SIZE", "3")
    monkeypatch.setattr(launch, "_world_communicator", lambda: SimpleNamespace(rank=0, size=3))
    assert "3 ranks, which is no power of two; start 2" in refused(capsys, "pretrain", exit_code=2)


def test_a_verb_that_does_not_train(monkeypatch, capsys):
    monkeypatch.setenv("PMI_SIZE", "2")
    said = refused(capsys, "generate", "runs/default", exit_code=2)
    assert "npllm generate does not train, so it runs in one process; start it without mpiexec" in said


def test_a_host_without_an_address(monkeypatch, capsys):
    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.setattr(socket, "gethostname", lambda: "node-7")

    def unknown(*_):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    said = refused(capsys, "pretrain", exit_code=2)
    assert "The name of this machine, node-7, has no address" in said
    assert "/etc/hosts" in said


def test_too_little_shared_memory(monkeypatch, tmp_path):
    monkeypatch.setenv("PMI_SIZE", "4")
    monkeypatch.setattr(launch.shutil, "disk_usage", lambda folder: SimpleNamespace(free=127 << 20))
    with pytest.raises(ResourceError, match="134 MB.*--shm-size"):
        launch._check_shared_memory(tmp_path)
    monkeypatch.setattr(launch.shutil, "disk_usage", lambda folder: SimpleNamespace(free=128 << 20))
    launch._check_shared_memory(tmp_path)


def test_without_mpi4py(monkeypatch, capsys):
    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.setitem(__import__("sys").modules, "mpi4py", None)
    assert "pip install 'npllm[mpi]'" in refused(capsys, "pretrain", exit_code=2)


class TwoRanks(Ranks):
    """Rank 0, beside another one with other versions."""

    def gather(self, value):
        host, facts = value
        return [value, ("node-7", facts | {"numpy": "2.1.0", "config.toml": "y" * 500})]


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"numpy": "2.4.6"}, r"Rank 1, on node-7, has another numpy than rank 0 \(2.1.0, not 2.4.6\), so"),
        ({"config.toml": "x" * 500}, "has another config.toml than rank 0, so"),
    ],
    ids=str,
)
def test_ranks_that_differ(facts, said):
    with pytest.raises(ConfigError, match=said):
        check_alike(TwoRanks(), facts)
    check_alike(TwoRanks(), {"python": "3.11.7"})


@needs_mpi
def test_an_error_of_the_command_line_is_said_once():
    done = job(2, "pretrain", "--bogus", 3)
    assert done.returncode == 2
    assert [line.split(";")[0] for line in done.stderr.splitlines() if line.startswith("npllm: ")] == [
        "npllm: --bogus is not an option of npllm pretrain"
    ]
