"""`benchmarks scale`: threads, ranks and PyTorch's processes do the same work."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from shutil import which

import pytest

from benchmarks import cli, scale
from benchmarks.configs import TINY
from benchmarks.peers.process import WorkerError
from benchmarks.race import PEERS_PYTHON, Contender, launcher_of
from npllm.planning.cost_model import CostModel

PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
needs_mpi = pytest.mark.skipif(
    which("mpiexec", path=PATH) is None or find_spec("mpi4py") is None, reason="needs mpi4py and mpiexec"
)
SIZES = scale.Sizes(cores=2, ranks=2, n_rows=16)


@pytest.fixture
def two_cores(monkeypatch):
    monkeypatch.setattr("numba.config.NUMBA_NUM_THREADS", 2)
    monkeypatch.setattr("benchmarks.race.BURST", 0.01)
    monkeypatch.setattr("benchmarks.timing.sleep", lambda seconds: None)


def rows_of(seconds: dict[str, list[float]]) -> list[dict]:
    """Rows as `measure` gives them, with these seconds in each round."""
    return [
        {"config": "cpu", "contender": name, "seconds": sorted(each)[len(each) // 2], "seconds_by_round": each}
        | dict(zip(("ranks", "threads"), scale.strong(SIZES).get(name, ()), strict=False))
        for name, each in seconds.items()
    ]


@needs_mpi
@pytest.mark.long
@pytest.mark.usefixtures("two_cores")
def test_threads_and_ranks_compute_the_same_bits():
    """Real processes and a real job of two ranks, with half of the batch each."""
    rows = scale.measure_config(TINY, rounds=1, peers=False)
    assert [row["contender"] for row in rows] == [
        "1 rank × 1 thread", "1 rank × 2 threads", "2 ranks × 1 thread", scale.SHARE,
    ]  # fmt: skip
    assert len({row["facts"]["params_sha256"] for row in rows}) == 1
    one, two, ranks, share = rows
    assert max(one["communication"], share["communication"]) < 0.05
    assert 0 < ranks["communication"] < 1
    assert [row.get("planned", 0) > 0 for row in rows] == [False, True, True, False]
    assert two["tokens_per_s"] == pytest.approx(16 * 16 / two["seconds"])
    assert share["tokens_per_s"] == pytest.approx(8 * 16 / share["seconds"])


@pytest.mark.skipif(PEERS_PYTHON not in os.environ, reason=f"{PEERS_PYTHON} is not set")
@pytest.mark.usefixtures("two_cores")
def test_two_processes_of_pytorch_train_as_we_do(monkeypatch):
    """A process with the wrong part of the batch would have another loss."""
    monkeypatch.setattr(scale, "DDP", {"PyTorch DDP": "eager"})
    monkeypatch.setattr(scale, "contenders_of", lambda sizes, peers: [
        contender for contender in contenders_of(sizes, peers) if contender.n_ranks == 1
    ])  # fmt: skip
    rows = {row["contender"]: row for row in scale.measure_config(TINY, rounds=1, peers=True)}
    theirs = rows["PyTorch DDP"]
    if "No module named 'torch'" in theirs.get("failure", ""):
        pytest.skip("no PyTorch there")
    ours = {name: rows["1 rank × 1 thread"]["facts"][name] for name in ("loss", "grad_norm", "second_loss")}
    assert theirs["facts"] == pytest.approx(ours, rel=1e-6)
    assert theirs["times_one"] > 0


contenders_of = scale.contenders_of


def test_contenders():
    """Of four cores: all splits, and micro-batches for four ranks."""
    sizes = scale.Sizes(cores=4, ranks=4, n_rows=12)
    assert sizes.micro_size == 3
    assert list(scale.strong(sizes).values()) == [(1, 1), (1, 2), (1, 3), (1, 4), (2, 2), (4, 1)]
    by_name = {contender.name: contender for contender in scale.contenders_of(sizes, peers=True)}
    assert by_name["2 ranks × 2 threads"].n_ranks == 2
    assert by_name["2 ranks × 2 threads"].environment["NUMBA_NUM_THREADS"] == "2"
    assert by_name[scale.SHARE].settings == {"timed_rows": 3}
    assert by_name["PyTorch DDP"].settings["processes"] == 4
    assert by_name[scale.probe_of(2)].settings == {"job": "probe", "probed_ranks": 2, "probed_threads": 2}


def test_other_bits_stop_the_benchmark():
    ours = {"loss": 4.0, "grad_norm": 2.0, "second_loss": 3.0, "params_sha256": "a"}
    ranks, peer = scale.on(2, 1), Contender("PyTorch DDP", "torch_ddp_worker", {}, 1e-4)
    scale.check_result(ranks, ours, ours)
    scale.check_result(peer, ours | {"loss": 4.0001, "params_sha256": "b"}, ours)
    with pytest.raises(SystemExit, match="2 ranks × 1 thread has other weights"):
        scale.check_result(ranks, ours | {"params_sha256": "b"}, ours)
    for contender in (ranks, peer):
        with pytest.raises(SystemExit, match="has second_loss"):
            scale.check_result(contender, ours | {"second_loss": 3.1}, ours)


def test_bars_are_ratios_within_a_round():
    """The machine is twice as slow in the second round, for all."""
    rows = rows_of(
        {
            "1 rank × 1 thread": [4.0, 8.0, 4.0],
            "1 rank × 2 threads": [2.0, 4.0, 2.0],
            "2 ranks × 1 thread": [2.5, 5.0, 2.5],
            scale.SHARE: [2.0, 4.0, 2.0],
            "PyTorch DDP": [3.0, 6.0, 3.0],
            "PyTorch DDP compiled": [2.0, 4.0, 2.0],
        }
    )
    rows[1]["planned"], rows[2]["planned"] = 1.1, 0.7
    (summary,) = scale.summarise(rows)
    assert (summary["against_threads"], summary["against_share"], summary["against_peer"]) == (0.8, 0.8, 0.8)
    assert summary["peer"] == "PyTorch DDP compiled"
    assert scale.verdict(rows) == [
        "cpu: 2 ranks × 1 thread, against 1 rank × 2 threads: 0.80×, bar 0.9×: MISSED",
        "cpu: 2 ranks × 1 thread, against PyTorch DDP compiled: 0.80×, bar 1.0×: MISSED",
        "cpu: 2 ranks × 1 thread, weak scaling: 80% of the speed of one rank with its share, each",
        "npllm plan is at most 30% off, bar 25%: MISSED",
    ]


def test_the_plan_of_the_benchmark_is_that_of_its_batch(monkeypatch):
    """One second for 1e9 operations, on two ranks that share this machine."""
    seen = []
    monkeypatch.setattr(
        CostModel, "step", lambda plan, ranks: seen.append((plan, ranks)) or type("", (), {"seconds": 3.0})
    )
    probe = {"facts": {"flops": 1e9, "memory_bandwidth": 2e9}, "seconds": 0.5}
    assert scale.predicted(TINY, SIZES, 2, probe) == 3.0
    ((plan, ranks),) = seen
    assert (ranks, plan.speed.flops, plan.network.ranks_per_host) == (2, 1e9, 2)
    assert (plan.rows, plan.micro_batches, plan.vocab_size) == (16, 2, TINY.model.vocab_size)


def test_without_mpi_the_ranks_are_absent(monkeypatch):
    monkeypatch.setattr("benchmarks.race.which", lambda *_, **__: None)
    with pytest.raises(WorkerError, match=r"pip install 'npllm\[mpi\]'"):
        launcher_of(2)
    rows = rows_of({"1 rank × 1 thread": [1.0], "1 rank × 2 threads": [1.0], scale.SHARE: [1.0]})
    assert scale.verdict(rows) == []


def test_the_command(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(cli, "introduce", lambda *_: {})
    monkeypatch.setattr(scale, "measure", lambda *given: asked.append(given) or [])
    assert cli.main(["scale", "--configs", "cpu", "--no_peers"]) == 0
    assert asked == [(("cpu",), 5, False)]
