"""`npllm extend`: more updates after the last one, with a schedule of their own."""

import pytest
from small_runs import pretrain_arguments, refused, run, state_digests, stop_after, summary, untimed_metrics, write_text

from npllm.runs.config_file import load_config
from npllm.runs.ledger import Ledger
from npllm.training.config import RunConfig, TrainConfig
from npllm.training.length import Phase, RunLength

pytestmark = pytest.mark.usefixtures("quick")
TEN_SECONDS = ("--minutes", 1 / 6)  # ten updates of the clock


def test_the_phases_of_a_run_of_steps_that_was_extended(tmp_path):
    """An update keeps the phase it was made in, also after a rollback into it."""
    ledger = Ledger(tmp_path / "ledger.jsonl", writable=True)
    ledger.extended(100, 1.0, 50.0)
    length = RunLength(RunConfig(train=TrainConfig(steps=100)), ledger)
    assert [length.phase(step) for step in (0, 99, 100)] == [Phase(0, 100), Phase(0, 100), Phase(100, None)]
    assert not length.is_over(100)
    for seconds in (53.0, 65.0, 80.0, 95.0, 104.0):  # half a second each
        length.decide(int(2 * seconds), seconds)
    assert [length.phase(step) for step in (99, 105, 106)] == [Phase(0, 100), Phase(100, None), Phase(100, 220)]
    assert not length.is_over(219)
    assert length.is_over(220)
    finished = RunLength(RunConfig(train=TrainConfig(steps=220)), ledger)
    assert finished.phase(106) == Phase(100, 220)
    assert finished.is_over(220)
    ledger.extended(220, 1.0, 110.0)
    twice = RunLength(RunConfig(train=TrainConfig(steps=220)), ledger)
    assert [twice.phase(step) for step in (0, 106, 220)] == [Phase(0, 100), Phase(100, 220), Phase(220, None)]


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("stops", [[1], [8], [4, 9]])
def test_an_extended_run_has_the_same_bits_after_any_stop(tmp_path, monkeypatch, stops):
    """Six updates, then ten in 10 s. The decisions come after 1, 3, 5, 8 and 9 of
    them."""
    settings = {"train__checkpoint_every": 3, "optim__decay": "linear", "optim__min_lr": 1e-5}
    text, whole, parts = write_text(tmp_path), tmp_path / "whole", tmp_path / "parts"
    for out in (whole, parts):
        assert run(*pretrain_arguments(text, out, **settings)) == 0
    assert run("extend", whole, *TEN_SECONDS) == 0
    stop_after(monkeypatch, *(6 + step for step in stops))
    code = run("extend", parts, *TEN_SECONDS)
    while code == 130:
        code = run("resume", parts)
    assert code == 0
    assert state_digests(parts) == state_digests(whole)
    assert summary(whole)["steps"] == load_config(whole / "config.toml", RunConfig).train.steps == 16
    rates = [record["lr"] for record in untimed_metrics(whole)]
    assert len(rates) == 16
    assert rates[5] == rates[15] == 1e-5, "both phases end with the lowest rate"
    assert max(rates[6:]) == max(rates[:6]) == rates[7], "the second warms up and starts at the peak"
    assert run("verify", whole) == 0


def test_a_run_that_is_not_finished_is_not_extended(tmp_path, capsys, monkeypatch):
    text, out = write_text(tmp_path), tmp_path / "run"
    stop_after(monkeypatch, 3)
    assert run(*pretrain_arguments(text, out)) == 130
    assert "is not finished; finish it first: npllm resume" in refused(capsys, "extend", out, exit_code=2)
    assert run("resume", out) == 0
    for minutes in ("0", "-1", "nan", "inf"):
        assert "set it above 0" in refused(capsys, "extend", out, f"--minutes={minutes}", exit_code=2)
    assert not (out / "ledger.jsonl").exists()
