"""The classifier's loss and gradient.

They are compared with finite differences, and under padding, micro-batches, frozen
blocks and LoRA.
"""

from types import SimpleNamespace

import numpy as np
import pytest
from gradient_check import check_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from model.model_cases import GPT_2, LLAMA, set_weights_of_order_one, shapes, small_config
from small_runs import shown_on_a_terminal

from npllm.data.sampler import RowSampler
from npllm.finetuning.adaptation import AdaptConfig
from npllm.finetuning.classifier import (
    ClassifierGradients,
    Pool,
    Rows,
    Texts,
    classification_loss_and_grad,
    cross_entropy,
    evaluate_classifier,
    pad_texts,
)
from npllm.finetuning.classify_config import ClassifyConfig
from npllm.finetuning.learning_curve import initial_state
from npllm.model import GPT, ModelConfig
from npllm.optim import BatchConfig, OptimConfig
from npllm.training.config import TrainConfig
from npllm.training.length import Phase
from npllm.training.loop import make_update


def random_texts(config: ModelConfig, n: int, seed: int) -> Texts:
    """Texts of every length up to block_size, with the classes in turn."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, config.block_size + 1, n)
    lengths[0] = config.block_size
    tokens = [rng.integers(0, config.vocab_size, length).astype(np.int32) for length in lengths]
    return Texts(tokens, np.arange(n) % config.n_outputs)


def order_one_model(config: ModelConfig, seed: int) -> GPT:
    model = GPT(config, seed=seed, dtype="float64")
    set_weights_of_order_one(model, seed)
    if model.frozen is not None:
        set_weights_of_order_one(SimpleNamespace(params=model.frozen), seed + 1)
    return model


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def forward_loss(model: GPT, texts: Texts, rows: Rows, pool: Pool, *, aux_lm: float, **how) -> float:
    """The loss of classifier.py's docstring, text by text, from the hidden states."""
    hidden = model.trace(rows.tokens, **how).hidden.reshape(*rows.tokens.shape, -1)
    head = model.merged()[model.head_name]
    of_classes, of_tokens = [], []
    for row, tokens, label in zip(hidden, *texts, strict=True):
        states = row[: len(tokens)]
        read = states[-1] if pool == "last" else states.mean(axis=0)
        logits = read @ model.params["readout.weight"] + model.params["readout.bias"]
        of_classes.append(-log_softmax(logits[None])[0, label])
        log_p = log_softmax(states @ head.T)
        of_tokens += [-log_p[t, token] for t, token in enumerate(tokens[1:])]
    return float(np.mean(of_classes) + aux_lm * np.mean(of_tokens or [0.0]))


def gradient_of(model: GPT, rows: Rows, *, aux_lm: float, **how) -> tuple[float, dict[str, np.ndarray]]:
    model.grads.flat[:] = 0.0
    counts = {"n_texts": len(rows.labels), "n_targets": int((rows.targets >= 0).sum())}
    losses = classification_loss_and_grad(model, rows, aux_lm=aux_lm, **counts, **how)
    loss = losses.of_classes + aux_lm * losses.of_tokens
    return loss, {name: gradient.copy() for name, gradient in model.grads.items()}


@pytest.mark.parametrize("architecture", [GPT_2, LLAMA], ids=["gpt2", "llama"])
@settings(max_examples=6)
@given(
    case=shapes(),
    n_classes=st.integers(2, 4),
    lora_rank=st.sampled_from([0, 2]),
    dropout=st.sampled_from([0.0, 0.3]),
    aux_lm=st.sampled_from([0.0, 0.5, 2.0]),
    pool=st.sampled_from(["last", "mean"]),
    seed=st.integers(0, 2**32),
)
def test_gradient_of_every_parameter(architecture, case, n_classes, lora_rank, dropout, aux_lm, pool, seed):
    fields, B, _ = case
    fields |= {name: value for name, value in architecture.items() if name != "n_kv_head"}
    config = ModelConfig(**fields, n_outputs=n_classes, lora_rank=lora_rank, dropout=dropout)
    model = order_one_model(config, seed)
    texts = random_texts(config, B + 1, seed)
    rows = pad_texts(texts, config.block_size, pool)
    how = {"aux_lm": aux_lm, "step": seed % 5, "first_row": 3}
    loss, gradients = gradient_of(model, rows, **how)

    def loss_now():
        return forward_loss(model, texts, rows, pool, **how)

    assert loss == pytest.approx(loss_now(), rel=1e-12)
    check_gradients(loss_now, dict(model.params), gradients, elementwise_up_to=0)


def test_cross_entropy_of_large_logits():
    nll, dlogits = cross_entropy(np.array([[1e4, 0.0], [0.0, np.log(3.0)]]), np.array([1, 0]))
    np.testing.assert_allclose(nll, [1e4, np.log(4.0)])
    np.testing.assert_allclose(dlogits, [[1.0, -1.0], [-0.75, 0.75]])


@pytest.mark.parametrize("pool", ["last", "mean"])
def test_padding_changes_neither_loss_nor_gradient(pool):
    config = small_config(block_size=24, n_outputs=3)
    model = order_one_model(config, 1)
    texts = random_texts(config, 4, 2)._replace(tokens=[np.arange(n, dtype=np.int32) for n in (3, 8, 1, 5)])
    narrow = pad_texts(texts, config.block_size, pool)
    assert narrow.tokens.shape == (4, 8)
    wide = narrow._replace(
        tokens=np.pad(narrow.tokens, ((0, 0), (0, 16)), constant_values=7),
        targets=np.pad(narrow.targets, ((0, 0), (0, 16)), constant_values=-1),
        shares=np.pad(narrow.shares, ((0, 0), (0, 16))),
    )
    loss, gradients = gradient_of(model, narrow, aux_lm=0.5)
    wide_loss, wide_gradients = gradient_of(model, wide, aux_lm=0.5)
    assert wide_loss == pytest.approx(loss, rel=1e-12)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(wide_gradients[name], gradient, rtol=1e-9, atol=1e-12, err_msg=name)


def test_rows_their_width_targets_and_what_the_head_reads():
    texts = Texts([np.array([5, 6, 7], np.int32), np.arange(9, dtype=np.int32)], np.array([1, 0]))
    rows = pad_texts(texts, 10, "last")
    assert rows.tokens.tolist() == [[5, 6, 7, 0, 0, 0, 0, 0, 0, 0], [*range(9), 0]]
    assert rows.targets.tolist() == [[6, 7, *[-1] * 8], [*range(1, 9), -1, -1]]
    assert rows.shares.tolist() == [[0, 0, 1, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0, 1, 0]]
    assert pad_texts(texts, 10, "mean").shares.tolist() == [[1 / 3] * 3 + [0] * 7, [1 / 9] * 9 + [0]]
    assert pad_texts(texts, 128, "last").tokens.shape == (2, 16)


def config_of(**changes) -> ClassifyConfig:
    fields = {"optim": OptimConfig(lr=1e-2, min_lr=0.0, warmup_steps=0, decay="constant", weight_decay=0.0)}
    return ClassifyConfig(**fields | {"train": TrainConfig(steps=3, dtype="float64")} | changes)


@pytest.mark.parametrize("micro_size", [1, 3, 4])
def test_micro_batches_add_up(micro_size):
    config = small_config(dropout=0.3, n_outputs=3)
    model = order_one_model(config, 4)
    texts, ids = random_texts(config, 9, 5), np.arange(3, 8)
    results = []
    for size in (5, micro_size):
        model.grads.flat[:] = 0.0
        batch, train = BatchConfig(size=5, micro_size=size), TrainConfig(seed=4)
        gradients = ClassifierGradients(texts, 0.5, "mean", config_of(batch=batch, train=train))
        results.append((gradients(model, ids, 2), model.grads.flat.copy()))
    (whole, gradient), (parts, sum_of_gradients) = results
    batch = texts.take(RowSampler(9, seed=4).rows(ids))
    rows = pad_texts(batch, config.block_size, "mean")
    assert whole.loss == pytest.approx(forward_loss(model, batch, rows, "mean", aux_lm=0.5, step=2), rel=1e-12)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-12)
    assert parts.figures == pytest.approx(dict(whole.figures), rel=1e-12)
    np.testing.assert_allclose(sum_of_gradients, gradient, rtol=0, atol=1e-12 * np.linalg.norm(gradient))


def updated(adapt: AdaptConfig, *, from_scratch: bool = False):
    """A base, and copies of a classifier's parameters before and after one update."""
    base = order_one_model(small_config(n_layer=3), 6)
    config = config_of(adapt=adapt)
    state = initial_state(base, config, 3, from_scratch=from_scratch)
    before = {name: array.copy() for name, array in state.model.params.items()}
    texts = random_texts(state.model.config, 6, 7)
    make_update(state, config, ClassifierGradients(texts, 0.5, "mean", config), Phase(0, config.train.steps))
    moved = {name: np.abs(state.model.params[name] - before[name]).max() for name in before}
    return base, state.model, before, moved


def test_a_classifier_begins_as_the_pretrained_model_and_from_scratch_as_a_random_one():
    base, model, before, _ = updated(AdaptConfig())
    assert all(np.array_equal(before[name], base.params[name]) for name in base.params)
    assert set(before) - set(base.params) == {"readout.weight", "readout.bias"}
    _, scratch, random_weights, moved = updated(AdaptConfig(frozen_blocks=2), from_scratch=True)
    fresh = GPT(scratch.config, seed=0, dtype="float64")
    assert all(np.array_equal(random_weights[name], fresh.params[name]) for name in fresh.params)
    assert scratch.config == model.config
    assert min(moved.values()) > 0


def test_frozen_blocks_do_not_move():
    *_, moved = updated(AdaptConfig(frozen_blocks=2))
    frozen = {name for name, distance in moved.items() if distance == 0}
    assert frozen == {name for name in moved if name.startswith(("blocks.0.", "blocks.1.")) or "embedding" in name}


def test_lora_leaves_the_weights_alone_and_trains_its_factors_and_the_head():
    base, model, _, moved = updated(AdaptConfig(lora_rank=2))
    assert np.array_equal(model.frozen.flat, base.params.flat)
    trained = {name for name, distance in moved.items() if distance > 0}
    assert trained == {name for name in moved if name.endswith(".lora_b") or name.startswith("readout.")}


def test_layers_further_down_learn_more_slowly():
    """Adam's first step is the learning rate times the sign of the gradient. There are
    L + 1 layers below the head."""
    *_, moved = updated(AdaptConfig(layer_decay=0.5))
    for name, distance in moved.items():
        layer = 0 if "embedding" in name else int(name.split(".")[1]) + 1 if name.startswith("blocks") else 4
        assert distance == pytest.approx(1e-2 * 0.5 ** (4 - layer), rel=1e-3), name


@pytest.mark.parametrize("pool", ["last", "mean"])
def test_evaluation_counts_every_text_once_and_has_no_dropout(pool):
    config = small_config(block_size=20, dropout=0.5, n_outputs=3)
    model = order_one_model(config, 8)
    texts = random_texts(config, 70, 9)
    result = evaluate_classifier(model, texts, pool)
    quiet = GPT(small_config(block_size=20, n_outputs=3), dtype="float64")
    quiet.params.flat[:] = model.params.flat
    losses, right = [], 0
    for number in range(70):
        alone = texts.take(np.array([number]))
        losses.append(forward_loss(quiet, alone, pad_texts(alone, 20, pool), pool, aux_lm=0.0))
        states = quiet.hidden(alone.tokens[0][None])
        read = states[-1:] if pool == "last" else states.mean(axis=0, keepdims=True)
        right += int(quiet.readout(read).argmax() == alone.labels[0])
    assert result.loss == pytest.approx(np.mean(losses), rel=1e-10)
    assert result.accuracy == right / 70
    shown = shown_on_a_terminal(lambda console: evaluate_classifier(model, texts, pool, console))
    assert "evaluating" in shown
    assert "100%" in shown
