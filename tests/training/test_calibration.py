"""A time budget becomes a number of steps."""

from types import SimpleNamespace

import numpy as np
import pytest
from small_runs import pretrain_arguments, run, stop_after, summary, write_text

from npllm.model import Architecture
from npllm.optim import BatchConfig
from npllm.runs.config_file import load_config
from npllm.training import calibration, pretrain
from npllm.training.config import RunConfig, TrainConfig

TOKENS = np.zeros(100, np.uint16)
MODEL = Architecture(n_layer=1, n_head=1, n_embd=4, block_size=4)


@pytest.fixture
def updates_of(monkeypatch):
    """Let updates take these seconds; after them each takes the last figure.

    Only updates move the clock.
    """

    def install(*seconds):
        clock, made = [100.0], []

        def make_update(state, config, gradients):
            took = seconds[min(len(made), len(seconds) - 1)]
            clock[0] += took
            made.append(config.batch)
            return SimpleNamespace(seconds=took, batch=config.batch.size)

        monkeypatch.setattr(calibration, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
        monkeypatch.setattr(calibration, "make_update", make_update)
        return made

    return install


def steps(minutes=1.0, **batch):
    config = RunConfig(model=MODEL, batch=BatchConfig(**batch), train=TrainConfig(minutes=minutes))
    return calibration.steps_in_budget(config, 5, TOKENS)


def test_without_a_ramp(updates_of):
    made = updates_of(50.0, 1.5, 2.5)  # the first compiles, and does not count
    assert steps(size=4, micro_size=4) == 30  # 60 s / 2 s
    assert len(made) == 3  # at least, although the first alone took more than 3 % of the budget


def test_with_a_ramp(updates_of):
    """Updates of 1, 1, 2, 2, 3, 3 sequences take 0.5 s for each sequence: 6 s. In the
    other 54 s, 27 updates of 2 s are made."""
    made = updates_of(50.0, 2.0)
    assert steps(size=4, micro_size=1, ramp_start=1, ramp_steps=6) == 33
    assert {batch.size for batch in made} == {4}  # measured at full size: a small batch is not a fair sample
    assert {batch.ramp_start for batch in made} == {None}


def test_a_ramp_below_the_micro_batch(updates_of):
    """One sequence takes a fourth of what four in one micro-batch take."""
    updates_of(2.0)
    assert steps(minutes=0.1, size=4, micro_size=4, ramp_start=1, ramp_steps=1000) == 12  # 6 s / 0.5 s


def test_the_measurement_takes_three_percent_of_the_budget_and_the_median(updates_of):
    made = updates_of(1.0, 0.25, 9.0, 0.25)
    assert steps(minutes=20.0, size=4, micro_size=4) == 4800  # 1200 s / 0.25 s: 9 s was bad luck
    assert len(made) == 106  # 36 s = 1 + 0.25 + 9 + 103 * 0.25


def test_at_least_one_step_and_not_endlessly_many(updates_of, monkeypatch):
    updates_of(1e6)
    assert steps(size=4, micro_size=4) == 1
    updates_of(1.0)
    monkeypatch.setattr(calibration, "MAX_STEPS", 50)
    assert steps(size=4, micro_size=4) == 50  # not 60


@pytest.mark.usefixtures("quick")
def test_the_number_of_steps_is_fixed_once(tmp_path, monkeypatch):
    """It is saved before training, so resuming does not measure again."""
    out = tmp_path / "run"
    monkeypatch.setattr(pretrain, "steps_in_budget", lambda config, V, tokens: 7)
    stop_after(monkeypatch, 3)
    assert run(*pretrain_arguments(write_text(tmp_path), out, train__steps=None), "--minutes", "2") == 130
    assert load_config(out / "config.toml", RunConfig).train.steps == 7
    monkeypatch.delattr(pretrain, "steps_in_budget")
    assert run("resume", out) == 0
    assert summary(out)["steps"] == 7


@pytest.mark.usefixtures("quick")
def test_a_real_measurement(tmp_path):
    out = tmp_path / "run"
    assert run(*pretrain_arguments(write_text(tmp_path), out, train__steps=None), "--minutes", "0.002") == 0
    assert summary(out)["steps"] == load_config(out / "config.toml", RunConfig).train.steps >= 1
