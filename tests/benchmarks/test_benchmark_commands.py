"""Every sub-command at tiny sizes, from its arguments to the figures in its JSON."""

import json
import os
import subprocess
import sys
from math import isfinite
from types import SimpleNamespace

import numba
import numpy as np
import pytest
from small_runs import ENVIRONMENT, PATIENCE

from benchmarks import checkpoint, cli, generate, kernels, machine, startup, train
from benchmarks.cases import operation_cases
from benchmarks.configs import CONFIGS, TINY
from benchmarks.ladder import adamw, climb, maximum
from benchmarks.race import PEERS_PYTHON
from benchmarks.tables import build_table
from npllm.model import ModelConfig

FACTS = {
    "cpu": "a CPU", "cores": 2, "threads": 2, "date": "2026-01-01", "numpy": "2", "blas": "openblas", "numba": "0",
    "peak_gflops": 100.0, "stream_gb_per_s": 20.0,
}  # fmt: skip
SMALL_GPT = ModelConfig(n_layer=2, n_head=4, n_embd=128, block_size=128, vocab_size=64)
SMALL_JOB = (
    "--data.tokenizer", "byte", "--train.steps", "2", "--model.n_layer", "1", "--model.n_head", "2",
    "--model.n_embd", "8", "--model.block_size", "8", "--batch.size", "4", "--batch.micro_size", "4",
    "--batch.ramp_start", "None", "--batch.ramp_steps", "0",
)  # fmt: skip

has_torch = pytest.mark.skipif(PEERS_PYTHON not in os.environ, reason=f"{PEERS_PYTHON} is not set")


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run `benchmarks ARGUMENTS` in this process, on a machine of known speed.

    Returns the rows and the printed text.
    """
    monkeypatch.setattr(cli, "machine_facts", lambda dtype: FACTS)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("benchmarks.race.BURST", 0.01)
    monkeypatch.setattr("benchmarks.timing.sleep", lambda seconds: None)

    def run_command(*arguments):
        assert cli.main([*arguments, "--rounds", "1", "--json", str(tmp_path / "figures.json")]) == 0
        figures = json.loads((tmp_path / "figures.json").read_text())
        assert figures["machine"] == FACTS
        assert all(isfinite(value) for row in figures["rows"] for value in row.values() if isinstance(value, float))
        return figures["rows"], capsys.readouterr().out

    return run_command


@pytest.mark.long
def test_train(run, monkeypatch):
    monkeypatch.setitem(CONFIGS, "cpu", TINY)
    monkeypatch.setattr(train, "NPLLM", train.NPLLM[:1])
    ours, numpy = rows = run("train", "--configs", "cpu", "--no_peers")[0]
    assert [row["contender"] for row in rows] == ["npllm", "NumPy"]
    assert numpy["ratio"] == pytest.approx(numpy["seconds"] / ours["seconds"])
    for row in (ours, numpy):
        assert row["tokens_per_s"] == pytest.approx(256 / row["seconds"])
        assert row["share_of_peak"] == pytest.approx(TINY.step_flops / row["seconds"] / 100e9)
        assert 20 < row["peak_mb"] < 2000, "an interpreter with NumPy, and little more"
        assert row["facts"]["loss"] == pytest.approx(ours["facts"]["loss"], rel=1e-5)


@has_torch
def test_pytorch_trains_as_we_do():
    """If PyTorch is told to do something else, the check fails."""

    def with_rate(contender, lr):  # a large one, so that every part of the update shows
        return contender._replace(settings={**contender.settings, "optimizer": {**train.UPDATE["optimizer"], "lr": lr}})

    ours, pytorch = with_rate(train.NPLLM[0], 0.03), train.PYTORCH[0]
    rows = train.race_training(TINY, [ours, with_rate(pytorch, 0.03)], rounds=1)
    assert rows[1]["facts"] == pytest.approx(rows[0]["facts"], rel=1e-6)
    assert rows[1]["ratio"] == rows[1]["seconds"] / rows[0]["seconds"]
    summary = train.summarise([{"config": "tiny", **row} for row in rows])
    assert summary[0]["float32_ratio"] == rows[1]["ratio"]
    with pytest.raises(SystemExit, match="PyTorch has second_loss"):
        train.race_training(TINY, [ours, with_rate(pytorch, 0.02)], rounds=1)


@has_torch
def test_pytorch_is_a_rung_of_the_ladder():
    with climb.torch_worker(peers=True) as worker:
        for operation in (operation for operation in climb.OPERATIONS if operation.task(*operation.SMALL).in_torch):
            task = operation.task(*operation.SMALL)
            right = tuple(result.copy() for result in task.numpy(*climb.own_inputs(task)))
            assert climb.with_torch(worker, task, right)() > 0
            with pytest.raises(SystemExit, match=f"{task.operation}, PyTorch differs".replace("+", r"\+")):
                climb.with_torch(worker, task, tuple(1.01 * result for result in right))


@pytest.mark.long
def test_generate(run, monkeypatch):
    monkeypatch.setattr(generate, "GPT2", SMALL_GPT)
    monkeypatch.setattr(generate, "CONTENDERS", generate.CONTENDERS[:1])
    (ours,) = run("generate", "--no_peers")[0]
    assert ours["tokens_per_s"] == pytest.approx(48 / ours["seconds"])
    assert ours["gb_per_s"] == pytest.approx(4e-9 * generate.weights_per_token(SMALL_GPT) * ours["tokens_per_s"])
    assert ours["share_of_bandwidth"] == pytest.approx(ours["gb_per_s"] / 20.0)
    assert len(ours["facts"]["tokens"]) == 48
    assert len(set(ours["facts"]["tokens"])) > 3, "a text that repeats itself would hide mistakes"


@has_torch
def test_hugging_face_writes_what_we_write():
    rows = generate.measure(SMALL_GPT, rounds=1, bandwidth=20e9)
    ours, theirs = (row for row in rows if row["contender"] in ("npllm", "Hugging Face"))
    if "No module named 'transformers'" in theirs.get("failure", ""):
        pytest.skip("no transformers there")
    assert theirs["facts"] == ours["facts"]


def test_checkpoint(run, monkeypatch):
    monkeypatch.setitem(CONFIGS, "mid", TINY)
    (row,), _ = run("checkpoint", "--configs", "mid")
    assert row["times_a_step"] == pytest.approx(row["saving_step_ms"] / row["step_ms"])
    assert row["on_the_disk_ms"] >= row["saving_step_ms"] > 0
    assert 0.1 < row["megabytes"] < 10


def test_a_checkpoint_that_is_not_the_state_is_no_figure(monkeypatch):
    monkeypatch.setitem(CONFIGS, "mid", TINY)
    monkeypatch.setattr(checkpoint, "load_checkpoint", lambda path: SimpleNamespace(arrays={"params": np.zeros(3)}))
    with pytest.raises(AssertionError, match="is not the state that was saved"):
        checkpoint.measure(("mid",), rounds=1)


@pytest.mark.long
def test_startup(run, monkeypatch):
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")  # nothing to compile: this test has no time for that
    monkeypatch.setattr(startup, "DEFAULT_JOB", SMALL_JOB)
    imported, constructed, cold, warm = run("startup")[0]
    assert all(row["seconds"] > 0 and row["rounds"] == 1 for row in (imported, constructed, cold, warm))


def test_startup_of_a_job_that_fails(monkeypatch):
    with pytest.raises(SystemExit, match=r"ended before its first step: .*model\.n_embd"):
        startup.measure((*SMALL_JOB, "--model.n_embd", "7"), rounds=1)


@pytest.mark.long
def test_tokenizer(run, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(startup.TEXT)
    learning, encoding = run("tokenizer", "--source", str(text), "--vocab_size", "300", "--no_peers")[0]
    assert learning["facts"]["vocab_size"] == 300
    assert learning["facts"]["n_tokens"] == encoding["facts"]["n_tokens"] < len(startup.TEXT)
    assert learning["mb_per_s"] * learning["seconds"] == pytest.approx(0.95 * len(startup.TEXT) / 1e6, rel=0.01)


def test_kernels(run, monkeypatch):
    cases = [case for case in operation_cases("float32") if case.name in ("linear", "LayerNorm")]
    monkeypatch.setattr(kernels, "operation_cases", lambda dtype: cases)
    linear, norm = run("kernels")[0]
    assert linear["share_of_peak"] == pytest.approx(cases[0].flops / (1e-3 * linear["kernel_ms"]) / 100e9)
    assert norm["share_of_peak"] is None
    assert norm["ratio"] > 0


@pytest.mark.long
def test_gemm(run, monkeypatch):
    monkeypatch.setitem(CONFIGS, "cpu", TINY)
    rows, output = run("gemm", "--configs", "cpu")
    assert len({(row["layer"], row["product"]) for row in rows}) == 5 * 3
    assert {row["shape"] for row in rows if row["layer"] == "head"} == {"256×16×512", "256×512×16", "512×256×16"}
    assert all(0 < row["npllm_gflops"] < 1000 > row["blas_gflops"] > 0 for row in rows)
    lost = sum(row["ratio"] < 1 for row in rows)
    assert f"slower than OpenBLAS in {lost} of {len(rows)}" in output


@pytest.mark.long
def test_ladder(run, monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    tasks = [module.task(*module.SMALL) for module in (adamw, maximum)]
    operations = [SimpleNamespace(task=lambda task=task: task, SMALL=()) for task in tasks]
    monkeypatch.setattr(climb, "OPERATIONS", operations)
    rows, _ = run("ladder", "--no_peers", "--plot", str(tmp_path / "roofline.png"))
    rungs = {row["rung"]: row for row in rows if row["operation"] == "AdamW"}
    assert list(rungs) == [climb.PYTHON, climb.NUMPY, climb.PLAIN, climb.PARALLEL, climb.KERNEL]
    assert rungs[climb.KERNEL]["ratio"] == 1.0
    for row in rungs.values():
        assert row["gflops"] == pytest.approx(1e-9 * tasks[0].flops / row["seconds"])
        assert row["share"] == pytest.approx(row["gb_per_s"] / 20.0)
    one_core = [row for row in rows if row["operation"] == "row maximum"]
    assert climb.PARALLEL not in {row["rung"] for row in one_core}
    assert all(row["ns_per_element"] == pytest.approx(1e9 * row["seconds"] / 2000) for row in one_core)
    assert (tmp_path / "roofline.png").exists()


def test_the_time_of_the_python_loop_is_scaled_up_by_the_work(monkeypatch):
    monkeypatch.setattr(climb, "timed", lambda function: lambda: 1.0)  # every rung takes one second
    rows = climb.climb(maximum.task(8000), maximum.task(2000), rounds=1)
    assert {row["rung"]: row["seconds"] for row in rows} == {
        climb.PYTHON: 4.0, climb.NUMPY: 1.0, climb.PLAIN: 1.0, climb.KERNEL: 1.0,
    }  # fmt: skip
    assert rows[0]["ratio"] == 4.0
    assert rows[0]["ns_per_element"] == 4e9 / 8000


@pytest.mark.long
def test_the_machine_is_measured(monkeypatch):
    """On this clock everything takes 1 ms, so the figures show the work."""
    monkeypatch.setattr(machine, "STREAM_BYTES", 1 << 22)
    monkeypatch.setattr(machine, "timed", lambda function: lambda: (function(), 1e-3)[1])
    facts = machine.machine_facts()
    assert facts["stream_gb_per_s"] == pytest.approx(2 * (1 << 22) / 1e-3 / 1e9), "read and written"
    per_thread = 2 * machine.TILE_ROWS * machine.FMA_DEPTH * machine.tile_columns(4) * machine.FMA_REPEATS
    assert facts["peak_gflops"] == pytest.approx(numba.get_num_threads() * per_thread / 1e-3 / 1e9)
    assert facts["blas"].split()[0] in ("openblas", "mkl", "blis", "accelerate", "flexiblas") or facts["blas"] == ""


def test_blas_is_not_forced_to_another_processor():
    """OPENBLAS_CORETYPE is dropped, with a warning, before NumPy is imported."""
    command = [sys.executable, "-m", "benchmarks", "--help"]
    environment = ENVIRONMENT | {"OPENBLAS_CORETYPE": "Prescott"}
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert "OPENBLAS_CORETYPE is set" in process.stdout
    assert "ladder" in process.stdout


def test_a_measurement_that_ends_early_leaves_no_file(tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "machine_facts", interrupted)
    (tmp_path / "old.json").write_text("{}")
    for name in ("new.json", "old.json"):
        assert cli.main(["startup", "--json", str(tmp_path / name)]) == 130
        assert capsys.readouterr().err == "benchmarks: interrupted\n"
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("old.json", "{}")]


def test_a_full_disk_is_one_sentence(monkeypatch, capsys):
    with open("/dev/full", "w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert cli.main(["--help"]) == 5
    expected = "benchmarks: standard output cannot be written (No space left on device); free disk space"
    assert capsys.readouterr().err.startswith(expected)


def test_no_round_is_refused_before_anything_is_measured(monkeypatch, capsys):
    monkeypatch.setattr(cli, "machine_facts", lambda dtype: pytest.fail("it measures"))
    assert cli.main(["kernels", "--rounds", "0"]) == 2
    assert capsys.readouterr().err == "benchmarks: --rounds is 0; give at least 1.\n"


def test_a_package_that_is_missing_is_named():
    program = (
        "import runpy, sys; sys.modules['threadpoolctl'] = None; runpy.run_module('benchmarks', run_name='__main__')"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert ended.stderr == "benchmarks: threadpoolctl is not installed; pip install 'npllm[bench]' installs it.\n"


def test_a_narrow_terminal_cuts_no_figure(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "30")
    table = build_table(
        "sizes",
        [{"n": 123456789.0, "name": "a product"}] * 2,
        {"what": ("name", "{}")} | {f"figure {i}": ("n", "{:,.1f}") for i in range(4)},
    )
    benchmark = SimpleNamespace(tables=lambda rows: [table], verdict=lambda rows: [])
    cli.publish(benchmark, [], {}, None)
    shown = capsys.readouterr().out
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 30
