"""What a checkpoint holds, and which files are refused as checkpoints."""

import json
from dataclasses import replace
from itertools import islice

import h5py
import numpy as np
import pytest
from checkpoint_files import described, edit, reseal, write_checkpoint

from npllm.errors import ConfigError, DataError
from npllm.model import Architecture
from npllm.optim import BatchConfig, OptimConfig
from npllm.runs.checkpoint import load_checkpoint, model_from_checkpoint, restore_checkpoint
from npllm.training.config import RunConfig, TrainConfig
from npllm.training.loop import NextTokenGradients, build_state, updates

V = 7
TOKENS = np.random.default_rng(0).integers(0, V, 100).astype(np.uint16)
CONFIG = RunConfig(
    model=Architecture(n_layer=1, n_head=2, n_embd=8, block_size=4),
    optim=OptimConfig(lr=1e-2),
    batch=BatchConfig(size=2, micro_size=2),
    train=TrainConfig(steps=9),
)
GRADIENTS = NextTokenGradients(CONFIG, TOKENS)


@pytest.fixture
def state():
    """The state after three updates."""
    state = build_state(CONFIG, V)
    assert len(list(islice(updates(state, CONFIG, GRADIENTS), 3))) == 3
    return state


@pytest.fixture
def saved(tmp_path, state):
    return write_checkpoint(tmp_path, state)


def test_round_trip(saved, state):
    again = build_state(CONFIG, V)
    again.model.grads.flat[:] = 1  # left over from an unfinished update
    restore_checkpoint(saved, again)
    assert again.counters() == state.counters()
    counted = {"updates": 3, "next_sample": 6, "tokens": 24, "seconds": state.seconds, "rollbacks": 0}
    assert again.counters() == counted | {"accepted": state.detector.history()}
    assert len(again.detector.losses) == 3
    assert sorted(again.arrays()) == ["adam_m", "adam_v", "params"]
    for name, array in state.arrays().items():
        assert array.any()
        np.testing.assert_array_equal(again.arrays()[name], array)
    assert not again.model.grads.flat.any()


def test_the_model_alone(saved, state):
    model = model_from_checkpoint(saved, backend="reference")
    assert (model.config, model.seed, model.dtype) == (state.model.config, 0, np.float32)
    np.testing.assert_array_equal(model.params.flat, state.model.params.flat)


def test_a_checkpoint_from_before_a_field_of_the_model(saved, state):
    """A field that the file does not name has its default, so an older run goes on."""
    reseal(saved, lambda description, _: description["model"].pop("qk_norm"))
    assert model_from_checkpoint(saved).config == state.model.config
    restore_checkpoint(saved, build_state(CONFIG, V))


def test_the_file_says_where_each_parameter_lies(saved, state):
    """A program without npllm can read the parameters: it needs HDF5 and JSON only."""
    with h5py.File(saved) as file:
        description = json.loads(file.attrs["state"])
        flat = file["params"][:]
        assert {name: (dataset.shape, dataset.dtype) for name, dataset in file.items()} == dict.fromkeys(
            ("params", "adam_m", "adam_v"), (flat.shape, np.dtype("float32"))
        )
    assert description["version"] == 2
    assert description["model"]["vocab_size"] == V
    assert description["table"].keys() == state.model.params.keys()
    for name, (offset, shape) in description["table"].items():
        values = flat[offset : offset + int(np.prod(shape))].reshape(shape)
        np.testing.assert_array_equal(values, state.model.params[name])


def test_a_deep_model_has_a_long_table(tmp_path):
    """The table is not stored in a way that limits an HDF5 attribute to 64 KiB."""
    deep = replace(CONFIG, model=replace(CONFIG.model, n_layer=130))
    state = build_state(deep, V)
    path = write_checkpoint(tmp_path, state)
    description = load_checkpoint(path).description
    assert len(json.dumps(description)) > 2**16
    restore_checkpoint(path, state)


def with_params(params):
    def change(description, file):
        del file["params"]
        file["params"] = params

    return lambda path: reseal(path, change)


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)


def with_nan(path):
    def change(_, file):
        file["params"][5] = np.nan

    reseal(path, change)


DAMAGES = {
    "truncated": (cut, "not a whole checkpoint"),
    "empty": (lambda path: path.write_bytes(b""), "not a whole checkpoint"),
    "text": (lambda path: path.write_text("no HDF5"), "not a whole checkpoint"),
    "folder": (lambda path: (path.unlink(), path.mkdir()), "not a whole checkpoint"),
    "version": (described(version=1), "version 1, but this npllm reads version 2; use the npllm that wrote it"),
    "no version": (described(version=None), "version None, but this npllm reads version 2"),
    "no model": (described(model=None), "not a whole checkpoint"),
    "no counters": (described(counters=None), "not a whole checkpoint"),
    "no state": (lambda path: edit(path, lambda file: file.attrs.pop("state")), "not a whole checkpoint"),
    "state no JSON": (
        lambda path: edit(path, lambda file: file.attrs.create("state", np.bytes_("{"))),
        "not a whole checkpoint",
    ),
    "state a list": (lambda path: edit(path, lambda file: file.attrs.create("state", np.bytes_("[]"))), "version None"),
    "fewer": (with_params(np.zeros(3, np.float32)), r"but has \(3,\) float32|the file holds 3"),
    "more": (
        with_params(np.zeros(9999, np.float32)),
        r"should hold params as \(\d+,\) float32, but has \(9999,\) float32",
    ),
    "dtype": (with_params(np.zeros(640, np.float64)), "params is not float32"),
    "missing": (
        lambda path: edit(path, lambda file: file.pop("params")),
        "not hold exactly params and adam_m and adam_v",
    ),
    "scalar": (with_params(np.float32(1)), "params is not one-dimensional"),
    "other values": (flip_a_bit, "its SHA-256 is not the one that it records"),
    "not a number": (with_nan, "is poisoned .params holds values that are not finite"),
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
    def remove(description, file):
        description["arrays"].remove("adam_v")
        del file["adam_v"]

    reseal(saved, remove)
    model_from_checkpoint(saved)
    with pytest.raises(DataError, match=r"step-00000003\.h5 should hold adam_v"):
        restore_checkpoint(saved, build_state(CONFIG, V))


GOOD = {"updates": 3, "next_sample": 6, "tokens": 24, "seconds": 0.1, "rollbacks": 0, "accepted": [[2.0, 0.5]]}


@pytest.mark.parametrize(
    "changes",
    [
        {"updates": None},
        {"updates": -1},
        {"updates": 2**63},
        {"next_sample": "6"},
        {"tokens": 24.0},
        {"rollbacks": True},
        {"seconds": -1.0},
        {"seconds": "1"},
        {"accepted": None},
        {"accepted": [[2.0]]},
        {"accepted": [[2.0, "0.5"]]},
        {"accepted": {"2.0": 0.5}},
    ],
)
def test_counters_that_cannot_be(saved, state, changes):
    described(counters=GOOD)(saved)
    restore_checkpoint(saved, build_state(CONFIG, V))
    described(counters=GOOD | changes)(saved)
    before = state.counters()
    complaint = rf"step-00000003\.h5 holds no valid state of this run \({next(iter(changes))} is"
    with pytest.raises(DataError, match=complaint):
        restore_checkpoint(saved, state)
    assert state.counters() == before


def test_the_checkpoint_of_another_model(saved):
    for changes in ({"n_layer": 2}, {"mlp": "swiglu"}, {"qk_norm": True}):
        model = replace(CONFIG.model, **changes)
        with pytest.raises(ConfigError, match=r"step-00000003\.h5 holds another model than config\.toml describes"):
            restore_checkpoint(saved, build_state(replace(CONFIG, model=model), V))


@pytest.mark.parametrize(
    "model", [{"n_layer": 0}, {"depth": 3}, {"n_head": "two"}, {"n_layer": 10**12}, {"vocab_size": 10**12}]
)
def test_a_description_of_no_model(saved, state, model):
    described(model={**vars(state.model.config), **model})(saved)
    with pytest.raises(DataError, match=r"step-00000003\.h5 describes no model that can be built"):
        model_from_checkpoint(saved)
