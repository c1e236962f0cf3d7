"""Checkpoints of LoRA, and of policy and critic: what is read back or refused."""

import json
from dataclasses import asdict, replace

import h5py
import numpy as np
import pytest
from checkpoint_files import described, edit, reseal, write_checkpoint

from npllm.errors import ConfigError, DataError
from npllm.memory import aligned
from npllm.model import GPT, ActorCritic, ModelConfig, Storage, parameters
from npllm.optim import AdamW
from npllm.runs.checkpoint import model_from_checkpoint, restore_checkpoint
from npllm.training.state import LoopState

PLAIN = ModelConfig(n_layer=2, n_head=2, n_embd=8, block_size=6, vocab_size=11)
LORA = replace(PLAIN, lora_rank=2, lora_alpha=3.0, lora_new_tokens=3)
CRITIC = {"plain": replace(PLAIN, n_outputs=1), "lora": replace(LORA, n_outputs=1)}
TOKENS = np.random.default_rng(0).integers(0, 11, (3, 6))
KINDS = ("lora", "actor-critic", "actor-critic with lora")
of_every_kind = pytest.mark.parametrize("kind", KINDS)
MOST_BYTES = 1 << 20  # the most that a buffer of these tests takes


def frozen_weights(seed: int):
    return GPT(PLAIN, seed=seed).params


def new_state(kind: str, seed: int = 0) -> LoopState:
    """The initial state, with the extra arrays of a stage."""
    if kind == "lora":
        model = GPT(LORA, seed=seed, storage=Storage(frozen=frozen_weights(seed)))
    elif kind == "actor-critic":
        model = ActorCritic(PLAIN, CRITIC["plain"], seed=seed)
    else:
        model = ActorCritic(LORA, CRITIC["lora"], seed=seed, frozen=frozen_weights(seed))
    extra = {"rollout_tokens": np.zeros(6, np.int32), "rollout_numbers": np.zeros(4, np.float64)}
    return LoopState(model, AdamW(model), extra={} if kind == "lora" else extra)


def trained_state(kind: str) -> LoopState:
    """The state after two updates from arbitrary gradients. Each of its arrays differs
    from the initial state."""
    state, rng = new_state(kind, seed=4), np.random.default_rng(1)
    for _ in range(2):
        state.model.grads.flat[:] = rng.standard_normal(len(state.model.grads.flat))
        state.optimizer.step(lr=0.1)
    for array in state.extra.values():
        array[:] = rng.integers(1, 9, array.shape)
    return state


@pytest.fixture
def saved(request, tmp_path):
    state = trained_state(request.param)
    return request.param, state, write_checkpoint(tmp_path, state)


every_kind = pytest.mark.parametrize("saved", KINDS, indirect=True)
with_lora = pytest.mark.parametrize("saved", [kind for kind in KINDS if "lora" in kind], indirect=True)
with_critic = pytest.mark.parametrize("saved", [kind for kind in KINDS if "critic" in kind], indirect=True)


@every_kind
def test_the_policy_comes_back(saved):
    kind, state, path = saved
    policy = state.model if kind == "lora" else state.model.policy
    model = model_from_checkpoint(path)
    np.testing.assert_array_equal(model.logits(TOKENS), policy.logits(TOKENS))
    assert (model.config, model.seed) == (policy.config, 4)
    assert model.params.keys() == policy.params.keys()


@every_kind
def test_the_whole_state_comes_back(saved):
    kind, state, path = saved
    again = new_state(kind)
    restore_checkpoint(path, again)
    assert again.arrays().keys() == state.arrays().keys()
    for name, array in state.arrays().items():
        assert array.any()
        np.testing.assert_array_equal(again.arrays()[name], array, err_msg=name)
    assert again.counters() == state.counters()
    if kind != "lora":
        critics = again.model.critic, state.model.critic
        outputs = [critic.readout(critic.hidden(TOKENS)) for critic in critics]
        np.testing.assert_array_equal(*outputs)


def test_a_checkpoint_from_before_new_tokens_had_rows_is_still_read(tmp_path):
    state = LoopState(model := GPT(replace(LORA, lora_new_tokens=0)), AdamW(model))
    path = write_checkpoint(tmp_path, state)
    reseal(path, lambda description, _: description["model"].pop("lora_new_tokens"))
    np.testing.assert_array_equal(model_from_checkpoint(path).logits(TOKENS), model.logits(TOKENS))
    restore_checkpoint(path, state)


@with_critic
def test_the_critic_is_in_the_file(saved):
    """A program without npllm finds it by name."""
    _, state, path = saved
    with h5py.File(path) as file:
        description, flat = json.loads(file.attrs["state"]), file["params"][:]
    assert description["critic"] == asdict(state.model.critic.config)
    offset, shape = description["table"]["critic.readout.weight"]
    found = flat[offset : offset + np.prod(shape)].reshape(shape)
    np.testing.assert_array_equal(found, state.model.critic.params["readout.weight"])


@with_lora
def test_the_frozen_weights_are_in_the_file_once(saved):
    _, state, path = saved
    with h5py.File(path) as file:
        assert set(file) == {"params", "adam_m", "adam_v", "frozen", *state.extra}
        np.testing.assert_array_equal(file["frozen"][:], state.model.frozen.flat)
        assert len(file["frozen"]) == len(GPT(PLAIN).params.flat)


@every_kind
def test_the_checkpoint_of_another_stage_is_refused(saved):
    """The state does not change."""
    kind, _, path = saved
    others = [new_state(other) for other in KINDS if other != kind]
    others.append(LoopState(model := GPT(PLAIN), AdamW(model)))
    others.append(LoopState(model := GPT(replace(LORA, lora_alpha=1.0)), AdamW(model)))
    others.append(LoopState(model := ActorCritic(PLAIN, replace(CRITIC["plain"], n_layer=1)), AdamW(model)))
    for state in others:
        before = {name: array.copy() for name, array in state.arrays().items()}
        with pytest.raises(ConfigError, match="holds another model than config.toml describes"):
            restore_checkpoint(path, state)
        for name, array in state.arrays().items():
            np.testing.assert_array_equal(array, before[name])


def without(name):
    def change(description, file):
        description["arrays"].remove(name)
        del file[name]

    return lambda path: reseal(path, change)


def with_array(name, change):
    def replaced(file):
        values = change(file[name][:])
        del file[name]
        file[name] = values

    return lambda path: edit(path, replaced)


def with_table(change):
    return lambda path: reseal(path, lambda description, _: description.update(table=change(description["table"])))


def with_config(name, **changes):
    return lambda path: reseal(path, lambda description, _: description[name].update(changes))


def refuse(path, complaint):
    """The loader refuses the file before it allocates memory that the file claims."""

    def small_zeros(n_bytes, real=aligned.aligned_zeros):
        assert n_bytes <= MOST_BYTES
        return real(n_bytes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parameters, "aligned_zeros", small_zeros)
        with pytest.raises(DataError, match=complaint) as caught:
            model_from_checkpoint(path)
    assert str(path) in str(caught.value)


OF_FROZEN = {
    "missing": (without("frozen"), "describes no model that can be built"),
    "too short": (with_array("frozen", lambda frozen: frozen[:-9]), "frozen weights"),
    "too long": (with_array("frozen", lambda frozen: np.tile(frozen, 2)), "frozen weights"),
    "of another dtype": (with_array("frozen", lambda frozen: frozen.astype(np.float64)), "frozen is not float32"),
    "not finite": (with_array("frozen", lambda frozen: np.full_like(frozen, np.nan)), "is poisoned .frozen holds"),
    "of a huge vocabulary": (with_config("model", vocab_size=10**9), "frozen weights are fewer"),
    "of wide blocks": (with_config("model", n_embd=10**5), "it would have [0-9,]+ parameters"),
    "of a huge rank": (with_config("model", lora_rank=1 << 16), "it would have [0-9,]+ parameters"),
    "of an impossible rank": (with_config("model", lora_rank=10**12), "model.lora_rank is 10{12}; set it from 0"),
    "of no rank": (
        with_config("model", lora_rank=0, lora_new_tokens=0),
        "its table lists other parameters|it would have",
    ),
    "of no rank with new tokens": (with_config("model", lora_rank=0), "model.lora_new_tokens is 3; set it from 0"),
    "of other new tokens": (with_config("model", lora_new_tokens=2), "should hold params as|it would have"),
    "of more new tokens than tokens": (with_config("model", lora_new_tokens=12), "from 0 to model.vocab_size"),
    "of a rank in words": (with_config("model", lora_rank="two"), "describes no model that can be built"),
    "of many layers": (with_config("model", n_layer=10**4), "it would have [0-9,]+ parameters|n_layer"),
}


@with_lora
@pytest.mark.parametrize(("damage", "complaint"), OF_FROZEN.values(), ids=OF_FROZEN)
def test_weights_below_lora_that_cannot_be(saved, damage, complaint):
    damage(saved[2])
    refuse(saved[2], complaint)


OF_CRITIC = {
    "a list": (described(critic=[1, 2]), "describes no model that can be built"),
    "a word": (described(critic="policy"), "describes no model that can be built"),
    "empty": (described(critic={}), "describes no model that can be built"),
    "of unknown fields": (with_config("critic", depth=3), "describes no model that can be built"),
    "without an output": (with_config("critic", n_outputs=0), "describes no model that can be built"),
    "of two outputs": (with_config("critic", n_outputs=2), "describes no model that can be built"),
    "deep": (with_config("critic", n_layer=10**4), "describes no model that can be built"),
    "wide": (with_config("critic", n_embd=2 * 10**4), "it would have [0-9,]+ parameters"),
    "of many words": (with_config("critic", vocab_size=10**9), "it would have|frozen weights are fewer"),
    "narrow": (with_config("critic", n_embd=4), "should hold params as|describes no model"),
    "of another kind": (with_config("critic", mlp="swiglu"), "its table lists other parameters|it would have"),
    "left out": (described(critic=None), "its table lists other parameters"),
    "renamed": (
        with_table(lambda table: {name.replace("critic.", "judge."): value for name, value in table.items()}),
        "its table lists other parameters",
    ),
}


@with_critic
@pytest.mark.parametrize(("damage", "complaint"), OF_CRITIC.values(), ids=OF_CRITIC)
def test_critics_that_cannot_be(saved, damage, complaint):
    damage(saved[2])
    refuse(saved[2], complaint)


@every_kind
def test_tables_that_name_other_parameters(saved):
    _, _, path = saved
    for change in (
        lambda table: dict(list(table.items())[1:]),
        lambda table: table | {"blocks.9.mlp.up.weight": [0, [8, 32]]},
        lambda table: {},
    ):
        content = path.read_bytes()
        with_table(change)(path)
        refuse(path, "its table lists other parameters")
        path.write_bytes(content)
    model_from_checkpoint(path)


@pytest.mark.parametrize("saved", ["lora"], indirect=True)
def test_a_critic_that_was_added(saved):
    described(critic=asdict(CRITIC["lora"]))(saved[2])
    refuse(saved[2], "it would have [0-9,]+ parameters|its table lists other parameters")


@with_critic
def test_a_critic_with_lora_needs_a_policy_with_it(saved):
    kind, _, path = saved
    with_config("critic", lora_rank=0 if "lora" in kind else 2, lora_new_tokens=0)(path)
    refuse(path, "describes no model that can be built")


@with_critic
def test_a_rollout_of_another_size_is_refused(saved):
    kind, _, path = saved
    for name in ("rollout_tokens", "rollout_numbers"):
        content = path.read_bytes()
        with_array(name, lambda values: values[:-1])(path)
        with pytest.raises(DataError, match=f"should hold {name} as"):
            restore_checkpoint(path, new_state(kind))
        path.write_bytes(content)
        without(name)(path)
        with pytest.raises(DataError, match=f"should hold {name} as .* but has nothing"):
            restore_checkpoint(path, new_state(kind))
        path.write_bytes(content)
    with_array("rollout_numbers", lambda values: values * np.nan)(path)
    with pytest.raises(DataError, match="is poisoned .rollout_numbers"):
        restore_checkpoint(path, new_state(kind))
