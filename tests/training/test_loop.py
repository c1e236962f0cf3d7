"""The training loop: its counters, its updates, and gradient accumulation."""

from itertools import islice
from math import log

import numpy as np
import pytest
from small_runs import TINY, untimed_metrics

from npllm.data.sampler import WindowSampler
from npllm.errors import TrainingError
from npllm.model import Architecture
from npllm.optim import BatchConfig, OptimConfig, batch_size, learning_rate
from npllm.runs.config_file import load_config
from npllm.training.config import RunConfig, TrainConfig
from npllm.training.evaluation import evaluate
from npllm.training.length import Phase
from npllm.training.loop import NextTokenGradients, build_state, make_update, updates
from npllm.training.spikes import SpikeConfig

V = 13
TOKENS = np.random.default_rng(0).integers(0, V, 200).astype(np.uint16)


def tiny_config(**changes) -> RunConfig:
    sections = {
        "model": Architecture(n_layer=1, n_head=2, n_embd=8, block_size=4, dropout=0.3),
        "optim": OptimConfig(lr=1e-2, min_lr=1e-3, warmup_steps=2),
        "batch": BatchConfig(size=8, micro_size=8),
        "train": TrainConfig(steps=8, dtype="float64"),
    }
    return RunConfig(**(sections | changes))


@pytest.mark.parametrize("micro_size", [1, 3, 5])
def test_micro_batches_change_nothing_but_rounding(micro_size):
    """The gradients of the parts add up to the batch's, with the same dropout masks."""

    def after_three_updates(micro_size):
        config = tiny_config(batch=BatchConfig(size=8, micro_size=micro_size, ramp_start=4, ramp_steps=1))
        state = build_state(config, V)
        made = list(islice(updates(state, config, NextTokenGradients(config, TOKENS)), 3))
        assert [update.batch for update in made] == [4, 8, 8]
        return state.model.params.flat, made

    whole, whole_updates = after_three_updates(8)
    parts, parts_updates = after_three_updates(micro_size)
    np.testing.assert_allclose(parts, whole, rtol=0, atol=1e-12)
    for one, other in zip(parts_updates, whole_updates, strict=True):
        assert one.loss == pytest.approx(other.loss, abs=1e-12)
        assert one.grad_norm == pytest.approx(other.grad_norm, abs=1e-12)


def test_the_counters_follow_the_ramp():
    config = tiny_config(batch=BatchConfig(size=8, micro_size=2, ramp_start=2, ramp_steps=6))
    state = build_state(config, V)
    made = list(updates(state, config, NextTokenGradients(config, TOKENS)))
    # 2, 3, 4, 5, 6, 7 rounded down to pairs, then 8; times T = 4 tokens.
    assert [update.batch for update in made] == [2, 2, 4, 4, 6, 6, 8, 8]
    assert [update.tokens for update in made] == [8, 16, 32, 48, 72, 96, 128, 160]
    assert [update.step for update in made] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert (state.step, state.next_sample, state.tokens) == (8, 40, 160)
    assert state.seconds == pytest.approx(sum(update.seconds for update in made))


def test_every_sample_is_trained_on_once_and_in_order(monkeypatch):
    seen = []
    real = WindowSampler.positions

    def positions(self, ids):
        seen.extend(ids.tolist())
        return real(self, ids)

    monkeypatch.setattr(WindowSampler, "positions", positions)
    config = tiny_config(batch=BatchConfig(size=8, micro_size=3, ramp_start=2, ramp_steps=6))
    state = build_state(config, V)
    list(updates(state, config, NextTokenGradients(config, TOKENS)))
    assert seen == list(range(state.next_sample))


def test_an_update_is_loss_and_grad_then_the_optimiser():
    """The second update equals the same steps written out, with its own learning rate,
    samples and dropout masks."""
    optim, train = OptimConfig(lr=1e-2, warmup_steps=4, grad_clip=0.05), TrainConfig(steps=40, dtype="float64")
    config = tiny_config(optim=optim, train=train)
    state, plain = build_state(config, V), build_state(config, V)
    sampler = WindowSampler(len(TOKENS), 4, config.train.seed)
    for step in range(2):
        update = make_update(state, config, NextTokenGradients(config, TOKENS), Phase(0, config.train.steps))
        starts = sampler.positions(np.arange(8 * step, 8 * step + 8))
        windows = np.stack([TOKENS[start : start + 5] for start in starts]).astype(np.int64)
        loss = plain.model.loss_and_grad(windows[:, :-1], windows[:, 1:], step=step)
        norm = plain.optimizer.step(grad_clip=0.05, lr=1e-2 * (step + 1) / 4)
        assert (update.loss, update.grad_norm) == pytest.approx((loss, norm), rel=1e-12)
        assert norm > 0.05  # otherwise the test would not notice missing clipping
    np.testing.assert_array_equal(state.model.params.flat, plain.model.params.flat)


@pytest.mark.parametrize(("steps", "expected"), [(8, 0), (35, 3), (1000, 5)])
def test_limits_wait_for_the_warm_up_that_there_is(steps, expected):
    """The detector has the warm-up of the learning rate: at most a tenth of the run."""
    config = tiny_config(optim=OptimConfig(warmup_steps=5)).with_steps(steps)
    state = build_state(config, V)
    next(updates(state, config, NextTokenGradients(config, TOKENS)))
    assert state.detector.warmup_steps == expected


def test_metrics_are_those_of_the_schedules(finished_run):
    config = load_config(finished_run / "config.toml", RunConfig)
    records = untimed_metrics(finished_run)
    assert [record["step"] for record in records] == list(range(1, 13))
    for i, record in enumerate(records):
        assert record["lr"] == learning_rate(i, 12, config.optim)
        assert record["batch"] == batch_size(i, config.batch)
    T = TINY["model.block_size"]
    assert [record["tokens"] for record in records] == list(np.cumsum([record["batch"] * T for record in records]))
    assert [record["step"] for record in records if "val_loss" in record] == [4, 8, 12]


def test_a_loss_that_is_not_finite_stops_training_that_may_not_roll_back():
    config = tiny_config(spikes=SpikeConfig(enabled=False))
    state = build_state(config, V)
    state.model.params["token_embedding"][:] = np.nan
    before = state.model.params.flat.copy()
    with pytest.raises(TrainingError, match="gradient of update 1 is not finite"):
        next(updates(state, config, NextTokenGradients(config, TOKENS)))
    np.testing.assert_array_equal(state.model.params.flat, before)
    assert state.step == 0


def test_a_model_learns_what_letter_counts_cannot_tell():
    """In a text that repeats, the next token is certain, but the unigram distribution
    has an entropy of log(V) nats."""
    tokens = np.tile(np.random.default_rng(1).permutation(V), 40).astype(np.uint16)
    model = Architecture(n_layer=1, n_head=2, n_embd=16, block_size=8)
    optim = OptimConfig(lr=3e-2, min_lr=3e-3, warmup_steps=5)
    config = tiny_config(model=model, optim=optim, train=TrainConfig(steps=40))
    state = build_state(config, V)
    before = evaluate(state.model, tokens, len(tokens)).loss
    losses = [update.loss for update in updates(state, config, NextTokenGradients(config, tokens))]
    after = evaluate(state.model, tokens, len(tokens)).loss
    assert before == pytest.approx(log(V), abs=0.05)  # an untrained model knows nothing
    assert losses[0] == pytest.approx(log(V), abs=0.05)
    assert after < 0.25 * log(V)


def test_the_seed_decides_weights_data_and_dropout(monkeypatch):
    seeds = []
    real = WindowSampler.__init__

    def init(self, n_tokens, block_size, seed):
        seeds.append(seed)
        real(self, n_tokens, block_size, seed)

    monkeypatch.setattr(WindowSampler, "__init__", init)

    def start(seed):
        config = tiny_config(train=TrainConfig(steps=1, seed=seed))
        state = build_state(config, V)
        initial = state.model.params.flat.copy()
        next(updates(state, config, NextTokenGradients(config, TOKENS)))
        return initial, state.model

    (one, model), (same, _), (other, _) = start(5), start(5), start(6)
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, other)
    assert model.seed == 5
    assert seeds == [5, 5, 6]
