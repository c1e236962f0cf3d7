"""What a checkpoint holds, what is no checkpoint, and what a full disk leaves behind."""

import errno
import hashlib
import json
import os
import shutil
from dataclasses import replace
from itertools import islice

import h5py
import numpy as np
import pytest
from small_runs import content, pretrain_arguments, refused, run, state_digests, write_text

from npllm.errors import DataError, ResourceError
from npllm.model import Architecture
from npllm.optim import BatchConfig, OptimConfig
from npllm.training.checkpoint import (
    checkpoint_path,
    checkpoints,
    load_checkpoint,
    model_from_checkpoint,
    restore_checkpoint,
    save_checkpoint,
)
from npllm.training.config import RunConfig, TrainConfig
from npllm.training.loop import build_state, updates

V = 7
TOKENS = np.random.default_rng(0).integers(0, V, 100).astype(np.uint16)
CONFIG = RunConfig(
    model=Architecture(n_layer=1, n_head=2, n_embd=8, block_size=4),
    optim=OptimConfig(lr=1e-2),
    batch=BatchConfig(size=2, micro_size=2),
    train=TrainConfig(steps=9),
)


@pytest.fixture
def state():
    """After three updates."""
    state = build_state(CONFIG, V)
    assert len(list(islice(updates(state, CONFIG, TOKENS), 3))) == 3
    return state


@pytest.fixture
def saved(tmp_path, state):
    return save_checkpoint(tmp_path, state, keep=1)


def test_round_trip(saved, state):
    again = build_state(CONFIG, V)
    again.model.grads.flat[:] = 1  # of an update that was under way
    restore_checkpoint(saved, again)
    assert again.counters() == state.counters()
    assert again.counters() == {"updates": 3, "next_sample": 6, "tokens": 24, "seconds": state.seconds}
    assert sorted(again.arrays()) == ["adam_m", "adam_v", "params"]
    for name, array in state.arrays().items():
        assert array.any()
        np.testing.assert_array_equal(again.arrays()[name], array)
    assert not again.model.grads.flat.any()


def test_the_model_alone(saved, state):
    model = model_from_checkpoint(saved, backend="reference")
    assert (model.config, model.seed, model.dtype) == (state.model.config, 0, np.float32)
    np.testing.assert_array_equal(model.params.flat, state.model.params.flat)


def test_the_file_says_where_each_parameter_lies(saved, state):
    """Enough for a program without npllm: HDF5 and JSON."""
    with h5py.File(saved) as file:
        description = json.loads(file.attrs["state"])
        flat = file["params"][:]
        assert {name: (dataset.shape, dataset.dtype) for name, dataset in file.items()} == dict.fromkeys(
            ("params", "adam_m", "adam_v"), (flat.shape, np.dtype("float32"))
        )
    assert description["version"] == 1
    assert description["model"]["vocab_size"] == V
    assert description["table"].keys() == state.model.params.keys()
    for name, (offset, shape) in description["table"].items():
        values = flat[offset : offset + int(np.prod(shape))].reshape(shape)
        np.testing.assert_array_equal(values, state.model.params[name])


def test_a_deep_model_has_a_long_table(tmp_path):
    """An HDF5 attribute must not be stored where 64 KiB is the limit."""
    deep = replace(CONFIG, model=replace(CONFIG.model, n_layer=130))
    state = build_state(deep, V)
    path = save_checkpoint(tmp_path, state, keep=1)
    description, _ = load_checkpoint(path)
    assert len(json.dumps(description)) > 2**16
    restore_checkpoint(path, state)


def test_only_the_newest_are_kept(tmp_path):
    state = build_state(CONFIG, V)
    for _ in updates(state, CONFIG, TOKENS):
        save_checkpoint(tmp_path, state, keep=3)
        newest = range(max(1, state.step - 2), state.step + 1)
        assert checkpoints(tmp_path) == [checkpoint_path(tmp_path, step) for step in newest]
    assert checkpoint_path(tmp_path, 9).name == "step-00000009.h5"


def edit(path, change):
    with h5py.File(path, "r+") as file:
        change(file)


def described(**changes):
    def change(file):
        description = json.loads(file.attrs["state"]) | changes
        file.attrs["state"] = json.dumps({name: value for name, value in description.items() if value is not None})

    return lambda path: edit(path, change)


def with_params(params):
    def change(file):
        del file["params"]
        if params is not None:
            file["params"] = params

    return lambda path: edit(path, change)


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


DAMAGES = {
    "truncated": (cut, "not a whole checkpoint"),
    "empty": (lambda path: path.write_bytes(b""), "not a whole checkpoint"),
    "text": (lambda path: path.write_text("no HDF5"), "not a whole checkpoint"),
    "folder": (lambda path: (path.unlink(), path.mkdir()), "not a whole checkpoint"),
    "version": (described(version=99), "version 99, but this npllm reads version 1; use the npllm that wrote it"),
    "no version": (described(version=None), "not a whole checkpoint"),
    "no model": (described(model=None), "not a whole checkpoint"),
    "no counters": (described(counters=None), "not a whole checkpoint"),
    "no state": (lambda path: edit(path, lambda file: file.attrs.pop("state")), "not a whole checkpoint"),
    "state no JSON": (lambda path: edit(path, lambda file: file.attrs.create("state", "{")), "not a whole checkpoint"),
    "state a list": (lambda path: edit(path, lambda file: file.attrs.create("state", "[]")), "not a whole checkpoint"),
    "shape": (with_params(np.zeros(3, np.float32)), r"should hold params as \(\d+,\) float32, but has \(3,\) float32"),
    "dtype": (with_params(np.zeros(640, np.float64)), "float32, but has .* float64"),
    "missing": (with_params(None), "float32, but has nothing"),
    "scalar": (with_params(np.float32(1)), "not a whole checkpoint"),
    "group": (lambda path: edit(path, lambda file: file.create_group("more")), "not a whole checkpoint"),
}


@pytest.mark.parametrize(("damage", "complaint"), DAMAGES.values(), ids=DAMAGES)
def test_what_is_no_checkpoint_is_named(saved, damage, complaint):
    damage(saved)
    for use in (lambda: restore_checkpoint(saved, build_state(CONFIG, V)), lambda: model_from_checkpoint(saved)):
        with pytest.raises(DataError, match=complaint) as caught:
            use()
        assert str(saved) in str(caught.value)


def test_moments_and_counters_matter_for_going_on_only(saved):
    def remove(file):
        del file["adam_v"]

    edit(saved, remove)
    model_from_checkpoint(saved)
    with pytest.raises(DataError, match=r"step-00000003\.h5 should hold adam_v"):
        restore_checkpoint(saved, build_state(CONFIG, V))


@pytest.mark.parametrize("counters", [{}, [], {"updates": 3, "next_sample": 6, "tokens": 24}])
def test_counters_that_are_incomplete(saved, counters):
    described(counters=counters)(saved)
    with pytest.raises(DataError, match=r"step-00000003\.h5 has unusable counters"):
        restore_checkpoint(saved, build_state(CONFIG, V))


def test_the_checkpoint_of_another_model(saved):
    for model in (replace(CONFIG.model, n_layer=2), replace(CONFIG.model, mlp="swiglu")):
        with pytest.raises(DataError, match=r"step-00000003\.h5 belongs to another model than config\.toml describes"):
            restore_checkpoint(saved, build_state(replace(CONFIG, model=model), V))


@pytest.mark.parametrize("model", [{"n_layer": 0}, {"depth": 3}, {"n_head": "two"}, []])
def test_a_description_of_no_model(saved, state, model):
    described(model={**vars(state.model.config), **model} if model else model)(saved)
    with pytest.raises(DataError, match=r"step-00000003\.h5 describes no model that can be built"):
        model_from_checkpoint(saved)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_older_checkpoints(tmp_path, state, monkeypatch, call):
    save_checkpoint(tmp_path, state, keep=1)
    before = content(tmp_path)
    next(updates(state, CONFIG, TOKENS))
    with monkeypatch.context() as patch:
        patch.setattr(os, call, no_space)
        with pytest.raises(ResourceError, match=r"step-00000004\.h5 cannot be written .*free disk space"):
            save_checkpoint(tmp_path, state, keep=1)
    assert content(tmp_path) == before
    save_checkpoint(tmp_path, state, keep=1)
    assert checkpoints(tmp_path) == [checkpoint_path(tmp_path, 4)]


def no_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.usefixtures("quick")
def test_a_run_on_a_full_disk_goes_on_when_there_is_room(tmp_path, capsys, monkeypatch):
    text = write_text(tmp_path)
    settings = {"train__steps": 8, "train__checkpoint_every": 2}
    assert run(*pretrain_arguments(text, tmp_path / "lucky", **settings)) == 0
    real_replace = os.replace

    def replace_until_step_6(source, target):
        if "step-00000006" in str(target):
            no_space()
        real_replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace_until_step_6)
        message = refused(capsys, *pretrain_arguments(text, tmp_path / "run", **settings), exit_code=5)
    assert "step-00000006.h5 cannot be written" in message
    assert run("resume", tmp_path / "run") == 0
    assert state_digests(tmp_path / "run") == state_digests(tmp_path / "lucky")


@pytest.mark.usefixtures("quick")
def test_a_damaged_newest_checkpoint_can_be_deleted(tmp_path, capsys, finished_run):
    out = tmp_path / "run"
    shutil.copytree(finished_run, out)
    newest = checkpoints(out / "checkpoints")[-1]
    cut(newest)
    before = content(out)
    message = refused(capsys, "resume", out, exit_code=3)
    assert str(newest) in message
    assert "delete it" in message
    assert content(out) == before
    newest.unlink()
    assert run("resume", out) == 0
    assert state_digests(out) == state_digests(finished_run)


def test_the_summary_has_the_hash_of_the_weights(finished_run):
    _, arrays = load_checkpoint(checkpoints(finished_run / "checkpoints")[-1])
    summary = json.loads((finished_run / "summary.json").read_text())
    assert summary["params_sha256"] == hashlib.sha256(arrays["params"].tobytes()).hexdigest()
