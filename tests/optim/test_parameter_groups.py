"""Parameter groups: their places in the buffer, their learning rates, and freezing."""

from dataclasses import replace

import numpy as np
import pytest

from npllm.model import GPT, ModelConfig
from npllm.model.parameters import Parameters
from npllm.optim import SGD, Adam, AdamW, Muon
from npllm.optim.optimizers import linear_weights, parameter_groups
from npllm.reference.muon import LinearWeight

CONFIG = ModelConfig(n_layer=2, n_head=2, n_embd=12, block_size=5, vocab_size=9)
RULES = [AdamW, Adam, Muon, SGD]


def new_model(backend: str = "kernels") -> GPT:
    return GPT(CONFIG, dtype="float64", backend=backend)


def add_gradient(model: GPT, seed: int = 0) -> None:
    tokens, targets = np.random.default_rng(seed).integers(0, CONFIG.vocab_size, (2, 3, 5))
    model.loss_and_grad(tokens, targets)


def copies(parameters) -> dict[str, np.ndarray]:
    return {name: array.copy() for name, array in parameters.items()}


@pytest.mark.parametrize(
    "lr_scales",
    [
        {},
        {"c": 0.5},
        {"a": 0.0, "b": 0.0},
        {"a": 0.0, "b": 0.5, "c": 0.0, "d": 0.5, "e": 0.0},
        {"b": 2.0, "d": 0.0, "e": 0.0},
        dict.fromkeys("abcde", 0.25),
    ],
)
def test_every_element_is_in_one_stretch_with_what_its_parameter_says(lr_scales):
    params = Parameters({"a": (3, 5), "d": (7,), "b": (16, 2), "e": (1,), "c": (1, 1)}, "float32")
    found = parameter_groups(params, lr_scales)
    assert [part.where.start for part in found] == [0, *(part.where.stop for part in found[:-1])]
    assert found[-1].where.stop == len(params.flat)
    for name, offset in params.offsets.items():
        inside = [part for part in found if part.where.start <= offset < part.where.stop]
        assert len(inside) == 1
        assert offset + params[name].size <= inside[0].where.stop, name
        assert inside[0][1:] == (lr_scales.get(name, 1.0), name in "abc", None), name
    for before, after in zip(found, found[1:], strict=False):  # as few groups as possible: each takes a pass
        assert before[1:] != after[1:]


def test_without_scales_there_are_matrices_and_vectors():
    params = new_model().params
    cut = params.n_matrix_elements
    assert [part[:3] for part in parameter_groups(params, {})] == [
        (slice(0, cut), 1.0, True),
        (slice(cut, len(params.flat)), 1.0, False),
    ]


def test_every_matrix_of_a_block_is_a_group_of_its_own_for_muon():
    """Tables of vectors are not, nor are the weights of norms, LoRA's factors and the
    second head."""
    model = GPT(replace(CONFIG, n_kv_head=1, n_outputs=2, qk_norm=True), dtype="float64")
    params, scales = model.params, {"blocks.0.mlp.up.weight": 0.5}
    weights = linear_weights(model, scales)
    kinds = {
        "attention.qkv": (12, (12, 6, 6)),
        "attention.out": (12, (12,)),
        "mlp.up": (12, (48,)),
        "mlp.down": (48, (12,)),
    }
    names = {f"blocks.{layer}.{name}.weight": kinds[name] for layer in range(2) for name in kinds}
    assert weights == {
        name: LinearWeight(params.offsets[name], *shape, scales.get(name, 1.0)) for name, shape in names.items()
    }
    groups = parameter_groups(params, scales, weights)
    assert [group.weight for group in groups if group.weight] == sorted(weights.values())
    assert all(group.where.start == group.weight.start for group in groups if group.weight)
    assert [group.where.start for group in groups] == [0, *(group.where.stop for group in groups[:-1])]
    assert groups[-1].where.stop == len(params.flat)
    decayed = [group.where for group in groups if group.decays]
    for name in ("blocks.0.attention.q_norm.weight", "blocks.1.attention.k_norm.weight"):
        assert not any(where.start <= params.offsets[name] < where.stop for where in decayed), name
    assert linear_weights(GPT(replace(CONFIG, lora_rank=2), dtype="float64"), {}) == {}


@pytest.mark.parametrize("rule", RULES)
def test_scales_of_one_change_no_bit(rule):
    models = new_model(), new_model()
    optimizers = rule(models[0]), rule(models[1], lr_scales=dict.fromkeys(models[1].params, 1.0))
    for seed in range(3):
        for model, optimizer in zip(models, optimizers, strict=True):
            add_gradient(model, seed)
            optimizer.step(grad_clip=0.1)
    assert models[0].params.flat.tobytes() == models[1].params.flat.tobytes()


@pytest.mark.parametrize("rule", RULES)
def test_a_scale_multiplies_the_learning_rate(ops, rule):
    """A parameter moves as it does when all have the scaled learning rate. The weight
    decay is scaled too."""
    backend = ops.__name__.removeprefix("npllm.")
    scales = {"token_embedding": 0.25, "blocks.0.mlp.up.weight": 2.0, "blocks.1.norm_2.bias": 0.5}
    model = new_model(backend)
    optimizer = rule(model, lr=0.01, weight_decay=0.3, lr_scales=scales)
    add_gradient(model)
    optimizer.step(grad_clip=0.5)
    for scale in (0.25, 0.5, 1.0, 2.0):
        alike = new_model(backend)
        add_gradient(alike)
        rule(alike, lr=0.01, weight_decay=0.3).step(grad_clip=0.5, lr=0.01 * scale)
        for name, array in model.params.items():
            if scales.get(name, 1.0) == scale:
                np.testing.assert_array_equal(array, alike.params[name], err_msg=name)


@pytest.mark.parametrize("rule", RULES)
def test_frozen_parameters_stay_and_do_not_count(ops, rule):
    model = new_model(ops.__name__.removeprefix("npllm."))
    frozen = {"token_embedding", "position_embedding", "blocks.0.attention.qkv.weight", "blocks.0.norm_1.bias"}
    optimizer = rule(model, weight_decay=0.3, lr_scales=dict.fromkeys(frozen, 0.0))
    before = copies(model.params)
    add_gradient(model)
    assert all(model.grads[name].any() for name in frozen)
    expected = np.sqrt(sum(np.sum(g * g) for name, g in model.grads.items() if name not in frozen))
    assert optimizer.step(grad_clip=0.1, lr=0.01) == pytest.approx(expected, rel=1e-12)
    assert not model.grads.flat.any()
    for name, array in model.params.items():
        assert (array == before[name]).all() == (name in frozen), name
    offsets = [(model.params.offsets[name], model.params[name].size) for name in frozen]
    for state in optimizer.state.values():
        assert not any(state[offset : offset + size].any() for offset, size in offsets)


def test_the_gradient_is_clipped_to_what_moves():
    """A huge gradient of frozen parameters must not shorten that of the others."""
    moved = []
    for factor in (1.0, 1e6):
        model = new_model()
        optimizer = SGD(model, lr=0.1, momentum=0.0, lr_scales={"token_embedding": 0.0})
        add_gradient(model)
        model.grads["token_embedding"][...] *= factor
        optimizer.step(grad_clip=0.05)
        moved.append(model.params.flat.copy())
    np.testing.assert_array_equal(*moved)
