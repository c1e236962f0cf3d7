"""A finished run, for tests that only read it, and a loop with a clock of its own."""

from types import SimpleNamespace

import pytest
from small_runs import pretrain_arguments, run, write_text

from npllm.training import loop


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """A run of 12 steps with a ramp and dropout. Do not change it.

    Checkpoints are saved after steps 5, 10 and 12 and, as the best ones, 4 and 8.
    """
    folder = tmp_path_factory.mktemp("finished")
    text = write_text(folder)
    out = folder / "run"
    settings = {"train__steps": 12, "train__checkpoint_every": 5, "train__eval_every": 4, "model__dropout": 0.2}
    ramp = {"batch__ramp_start": 2, "batch__ramp_steps": 4}
    assert run(*pretrain_arguments(text, out, **settings, **ramp)) == 0
    return out


@pytest.fixture
def clock(monkeypatch):
    """A loop in which every update takes a second."""
    ticks = iter(range(10**6))
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
