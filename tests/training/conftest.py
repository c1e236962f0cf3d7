"""A run that is finished, for the tests that only look at one, and less waiting for those that make their own."""

import pytest
from small_runs import pretrain_arguments, run, write_text

from npllm.training import results, train


@pytest.fixture
def quick(monkeypatch):
    """Leave out what a run does after its last step, and the measurement of the machine's peak."""
    monkeypatch.setattr(train, "matmul_peak", lambda dtype: 1e9)
    monkeypatch.setattr(results, "SAMPLE_TOKENS", 2)
    monkeypatch.setattr(results, "plot_loss", lambda metrics, path: None)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """12 steps with a ramp, dropout and checkpoints after steps 5, 10 and 12, of which two are kept. Do not change."""
    folder = tmp_path_factory.mktemp("finished")
    text = write_text(folder)
    out = folder / "run"
    settings = {"train__steps": 12, "train__checkpoint_every": 5, "train__eval_every": 4, "model__dropout": 0.2}
    ramp = {"batch__ramp_start": 2, "batch__ramp_steps": 4}
    assert run(*pretrain_arguments(text, out, **settings, **ramp)) == 0
    return out
