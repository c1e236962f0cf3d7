"""A stopped run goes on bit for bit: weights, the optimiser's moments and the log."""

import hashlib
import json
from contextlib import nullcontext

import numpy as np
import pytest
from checkpoint_files import write_checkpoint
from small_runs import (
    checkpoints,
    content,
    pretrain_arguments,
    run,
    state_digests,
    stop_after,
    summary,
    untimed_metrics,
    write_text,
)

from npllm.errors import DataError
from npllm.model import Architecture
from npllm.optim import BatchConfig, OptimConfig
from npllm.runs.checkpoint import checkpoint_path, restore_checkpoint
from npllm.runs.config_file import config_text, load_config
from npllm.runs.metrics import read_metrics
from npllm.training import train
from npllm.training.config import RunConfig, TrainConfig
from npllm.training.loop import NextTokenGradients, build_state, updates

STEPS = 12
SETTINGS = {
    "train__steps": STEPS,
    "train__checkpoint_every": 4,
    "train__eval_every": 5,
    "model__dropout": 0.2,
    "batch__ramp_start": 2,
    "batch__ramp_steps": 6,
}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert run(*pretrain_arguments(write_text(folder), folder / "run", **SETTINGS)) == 0
    return folder / "run"


def assert_same_run(one, other):
    assert state_digests(one) == state_digests(other)
    assert summary(one)["params_sha256"] == summary(other)["params_sha256"]
    assert untimed_metrics(one) == untimed_metrics(other)
    samples = (one / "samples.jsonl").read_bytes()
    assert [json.loads(line)["step"] for line in samples.splitlines()] == [5, 10, STEPS]
    assert samples == (other / "samples.jsonl").read_bytes()


def kill_after(monkeypatch, step, out):
    """Make a run and end it after this step, as if it were killed.

    It has the checkpoints that were due until then, and no others.
    """

    class Killed(BaseException):
        pass

    def updates(*args, real=train.updates):
        for update in real(*args):
            if update.step > step:
                raise Killed
            yield update

    with monkeypatch.context() as patch:
        patch.setattr(train, "updates", updates)
        with pytest.raises(Killed):
            run(*pretrain_arguments(write_text(out.parent), out, **SETTINGS))


@pytest.mark.parametrize("step", range(1, STEPS))
@pytest.mark.usefixtures("quick")
def test_stopped_after_any_step(tmp_path, monkeypatch, capsys, uninterrupted, step):
    text, out = write_text(tmp_path), tmp_path / "run"
    stop_after(monkeypatch, step)
    assert run(*pretrain_arguments(text, out, **SETTINGS)) == 130
    assert f"Stopped and saved after step {step}; go on with: npllm resume {out}" in capsys.readouterr().err
    assert untimed_metrics(out) == untimed_metrics(uninterrupted)[:step]
    text.unlink()  # a run needs nothing but its folder
    assert run("resume", out) == 0
    assert_same_run(out, uninterrupted)


@pytest.mark.usefixtures("quick")
def test_stopped_ten_times_in_a_row(tmp_path, monkeypatch, uninterrupted):
    out = tmp_path / "run"
    stop_after(monkeypatch, *range(1, 11))
    assert run(*pretrain_arguments(write_text(tmp_path), out, **SETTINGS)) == 130
    for _ in range(9):
        assert run("resume", out) == 130
    assert run("resume", out) == 0
    assert_same_run(out, uninterrupted)


@pytest.mark.usefixtures("quick")
def test_killed_between_checkpoints(tmp_path, monkeypatch, uninterrupted):
    """The steps since the last checkpoint are made again, and each is in the log once.
    A line that was cut off is replaced. The last checkpoint, of step 5, is not a
    scheduled one: it was saved because its validation loss is the lowest so far."""
    out = tmp_path / "run"
    kill_after(monkeypatch, 6, out)
    assert [path.name for path in checkpoints(out)] == [f"step-0000000{step}.h5" for step in (0, 4, 5)]
    with (out / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 7, "loss": 2.')
    assert run("resume", out) == 0
    assert_same_run(out, uninterrupted)


@pytest.mark.usefixtures("quick")
def test_killed_before_the_first_scheduled_checkpoint(tmp_path, monkeypatch, uninterrupted):
    out = tmp_path / "run"
    kill_after(monkeypatch, 2, out)
    assert [path.name for path in checkpoints(out)] == ["step-00000000.h5"]
    assert run("resume", out) == 0
    assert_same_run(out, uninterrupted)


@pytest.mark.usefixtures("quick")
def test_a_finished_run_stays_as_it_is(tmp_path, uninterrupted):
    out = tmp_path / "run"
    assert run(*pretrain_arguments(write_text(tmp_path), out, **SETTINGS)) == 0
    before = content(out)
    assert run("resume", out) == 0
    assert content(out) == before


@pytest.mark.usefixtures("quick")
def test_what_the_message_calls_saved_is_saved(tmp_path, monkeypatch, capsys):
    """Ctrl-C may come at any moment, even between the line of code that decides to save
    and the line that stops."""

    class Request:
        asked = 0

        @property
        def requested(self):
            self.asked += 1
            return self.asked > 3

    monkeypatch.setattr(train, "stop_on_signals", lambda: nullcontext(Request()))
    out = tmp_path / "run"
    assert run(*pretrain_arguments(write_text(tmp_path), out, **SETTINGS)) == 130
    saved = checkpoints(out)[-1]
    said = int(capsys.readouterr().err.split("after step ")[1].split(";")[0])
    assert saved.name == f"step-{said:08d}.h5"


@pytest.mark.parametrize("optimizer", ["adam", "muon", "sgd"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_saved_and_rebuilt_after_every_step(tmp_path, optimizer, dtype):
    """A run's state is all in its files: after each step all objects are made anew."""
    config = RunConfig(
        model=Architecture(
            n_layer=1, n_head=2, n_kv_head=1, n_embd=8, block_size=4, dropout=0.3,
            norm="rmsnorm", position="rotary", mlp="swiglu", tie_embeddings=False, qk_norm=True,
        ),
        optim=OptimConfig(name=optimizer, lr=1e-2, warmup_steps=3),
        batch=BatchConfig(size=5, micro_size=2, ramp_start=1, ramp_steps=6),
        train=TrainConfig(steps=8, dtype=dtype, seed=2**64 - 1),
    )  # fmt: skip
    tokens = np.random.default_rng(0).integers(0, 7, 90).astype(np.uint16)  # so few that epochs end inside a batch
    gradients = NextTokenGradients(config, tokens)
    whole = build_state(config, 7)
    expected = [update.loss for update in updates(whole, config, gradients)]

    (tmp_path / "config.toml").write_text(config_text(config, {}))
    write_checkpoint(tmp_path, build_state(config, 7))
    losses = []
    for step in range(8):
        again = load_config(tmp_path / "config.toml", RunConfig)
        state = build_state(again, 7)
        restore_checkpoint(checkpoint_path(tmp_path, step), state)
        losses.append(next(updates(state, again, NextTokenGradients(again, tokens))).loss)
        write_checkpoint(tmp_path, state)
    assert losses == expected
    for name, array in whole.arrays().items():
        assert hashlib.sha256(state.arrays()[name]).digest() == hashlib.sha256(array).digest(), name
    assert (state.next_sample, state.tokens, state.step) == (whole.next_sample, whole.tokens, whole.step)


def test_a_damaged_log_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    sound = b'{"step": 1, "tokens": 8, "loss": 2.5}\n'
    for damage in (b"\x00\x00\x00\n" + sound, b"[2]\n", b'{"loss": 2}\n'):
        path.write_bytes(sound + damage)
        with pytest.raises(DataError, match=r"metrics\.jsonl, line 2, is not the record of a step \(.*\); delete that"):
            read_metrics(path)
