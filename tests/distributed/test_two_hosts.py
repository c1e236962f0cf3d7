"""A run on two hosts has the same bits as one process, and ends with a host.

The hosts are network namespaces of Linux, which a virtual cable joins. Each has a host
name of its own, so MPI takes them for two machines.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from signal import SIGKILL, SIGSTOP
from types import SimpleNamespace

import pytest
from jobs import BESIDE_PYTHON, MPIEXEC, SETTINGS, arguments_of, needs_mpi, words_of
from small_runs import ENVIRONMENT, PATIENCE, checkpoints, run, state_digests, untimed_metrics, write_text

from npllm.runs.checkpoint import load_checkpoint

pytestmark = [
    needs_mpi,
    pytest.mark.long,
    pytest.mark.skipif(sys.platform != "linux", reason="network namespaces are of Linux"),
]

HOSTS = ("10.77.0.1", "10.77.0.2")  # they are the hosts' names, too, so that a name has an address
CABLE = "cable"
# UCX, the other network library of MPICH, sees that both hosts have one kernel, and
# uses its memory.
OVER_THE_CABLE = {"MPIR_CVAR_CH4_NETMOD": "ofi", "FI_PROVIDER": "tcp"}
# What mpiexec starts in place of ssh, as `SCRIPT -x HOST COMMAND`.
LAUNCHER = """#!/bin/sh
host=$2
shift 2
exec ip netns exec "{prefix}$host" unshare --uts sh -c "echo $host > /proc/sys/kernel/hostname && exec $*"
"""


def ip(*words: str) -> str:
    """Run a command of iproute2, and return what it prints. Raises
    CalledProcessError."""
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


def remove_namespaces(*, of: Callable[[int], bool]) -> None:
    """Remove the namespaces of such processes of tests."""
    for space in re.findall(r"^npllm-\d+-\S+", ip("netns", "list"), re.MULTILINE):
        if of(int(space.split("-")[1])):
            ip("netns", "delete", space)


def wait_for_signal(space: str) -> None:
    """Wait until Linux says that the cable of a namespace has a signal, which takes up
    to a second. MPI does not take a cable that has none."""
    deadline = time.monotonic() + PATIENCE
    while "state UP" not in ip("-n", space, "link", "show", CABLE):
        assert time.monotonic() < deadline, "the cable has no signal"


@pytest.fixture
def hosts(tmp_path):
    """Two hosts. launcher: starts a command on one. sent: the bytes that the first one
    has sent over the cable."""
    if missing := [name for name in ("ip", "unshare") if shutil.which(name) is None]:
        pytest.skip(f"needs {' and '.join(missing)}, of iproute2 and util-linux")
    remove_namespaces(of=lambda process: not Path(f"/proc/{process}").exists())  # killed before it could
    prefix = f"npllm-{os.getpid()}-"
    spaces = [prefix + host for host in HOSTS]
    launcher = tmp_path / "launcher"
    launcher.write_text(LAUNCHER.format(prefix=prefix))
    launcher.chmod(0o755)
    try:
        try:
            for space in spaces:
                ip("netns", "add", space)
            ip("-n", spaces[0], "link", "add", CABLE, "type", "veth", "peer", "name", CABLE, "netns", spaces[1])
            for space, host in zip(spaces, HOSTS, strict=True):
                ip("-n", space, "address", "add", f"{host}/24", "dev", CABLE)
                ip("-n", space, "link", "set", "lo", "up")
                ip("-n", space, "link", "set", CABLE, "up")
            for space in spaces:
                wait_for_signal(space)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not permitted: {error.stderr.strip()}")
        count = "netns", "exec", spaces[0], "cat", f"/sys/class/net/{CABLE}/statistics/tx_bytes"
        yield SimpleNamespace(launcher=launcher, sent=lambda: int(ip(*count)))
    finally:
        remove_namespaces(of=lambda process: process == os.getpid())


def job_on(hosts, n_ranks: int, *arguments: object, **faults: Sequence) -> subprocess.CompletedProcess:
    """Run `npllm ARGUMENTS` on both hosts, and wait for its end. mpiexec starts on the
    first one. faults: see faulty.py."""
    mpiexec = [MPIEXEC, "-n", str(n_ranks), "-ppn", str(n_ranks // len(HOSTS)), "-hosts", ",".join(HOSTS)]
    mpiexec += ["-launcher", "ssh", "-launcher-exec", str(hosts.launcher), *words_of(faults), *map(str, arguments)]
    return subprocess.run(
        [str(hosts.launcher), "-x", HOSTS[0], shlex.join(mpiexec)],
        env=ENVIRONMENT | {"NUMBA_NUM_THREADS": "1", "PATH": BESIDE_PYTHON} | OVER_THE_CABLE,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


@pytest.mark.parametrize("n_ranks", [2, 4])
def test_two_hosts_have_the_bits_of_one_process(hosts, tmp_path, n_ranks):
    text = write_text(tmp_path)
    alone, together = tmp_path / "alone", tmp_path / "together"
    assert run(*arguments_of(text, alone)) == 0
    done = job_on(hosts, n_ranks, *arguments_of(text, together))
    assert done.returncode == 0, done.stderr
    assert state_digests(together) == state_digests(alone)
    assert untimed_metrics(together) == untimed_metrics(alone)
    # In each update a host sends at least a half of the gradient and of the weights.
    assert hosts.sent() > SETTINGS["train__steps"] * load_checkpoint(checkpoints(alone)[-1]).arrays["params"].nbytes


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        ("rank 1: out of memory", {"fail": [1, 21]}),
        ("", {"signal": [1, 21, SIGKILL]}),
        ("Rank 1, on ", {"signal": [1, 21, SIGSTOP]}),
        ("Rank 1, on ", {"lose_machine": [1, 21, CABLE]}),
    ],
    ids=["fails", "killed", "stopped", "lost"],
)
def test_the_only_rank_of_another_host_ends(hosts, tmp_path, said, fault):
    """The job ends, even where mpiexec cannot reach the other host, and can be
    resumed."""
    text = write_text(tmp_path)
    alone, together = tmp_path / "alone", tmp_path / "together"
    assert run(*arguments_of(text, alone, train__steps=30)) == 0
    ended = job_on(hosts, 2, *arguments_of(text, together, train__steps=30), impatient=[], **fault)
    assert ended.returncode != 0
    assert said in ended.stderr
    assert run("resume", together) == 0
    assert state_digests(together) == state_digests(alone)


@pytest.mark.parametrize("rank", [0, 1])
def test_one_host_cannot_take_part(hosts, tmp_path, rank):
    """It says why, and the other one does not wait for it."""
    ended = job_on(hosts, 2, *arguments_of(write_text(tmp_path), tmp_path / "run"), cramped=[rank])
    assert ended.returncode != 0
    said = [line for line in ended.stderr.splitlines() if line.startswith("npllm: ")]
    assert len(said) == 1, ended.stderr
    assert "make it larger" in said[0]
    assert ("rank 1, on 10.77.0.2: " in said[0]) == (rank == 1)
    assert not (tmp_path / "run").exists()


def test_three_ranks_on_two_hosts(hosts, tmp_path):
    """All ranks refuse, so rank 0 says it, and the job has its exit code."""
    ended = job_on(hosts, 3, *arguments_of(write_text(tmp_path), tmp_path / "run"))
    assert ended.returncode == 2, ended.stderr
    assert [line[:31] for line in ended.stderr.splitlines()] == ["npllm: mpiexec has started 3 ra"]
