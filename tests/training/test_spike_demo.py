"""The spike demo at a tiny size: its poison, and what each of three trainings does."""

import io
import json
import sys
from dataclasses import replace
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pytest
from small_runs import broken_at_80_columns, write_text

from npllm.data.sampler import WindowSampler
from npllm.data.shards import TokenShard
from npllm.model import Architecture
from npllm.optim import BatchConfig, OptimConfig
from npllm.output import TextConsole
from npllm.runs.config_file import stage_of
from npllm.runs.ledger import Ledger
from npllm.runs.run_folder import RunFolder
from npllm.training import recovery, spike_demo
from npllm.training.config import DataConfig, RunConfig, TrainConfig
from npllm.training.loop import BatchResult, build_state
from npllm.training.spike_demo import (
    Batch,
    Poison,
    Training,
    comparison,
    in_plain_words,
    poison,
    run_demo,
    skip_updates,
)
from npllm.training.spikes import SpikeConfig

T, ROWS = 16, 8
POISON = Poison(first=85, batches=6, growth=3)
IDS = range(85 * ROWS, 91 * ROWS)  # of the poisoned samples


class Demo(NamedTuple):
    trainings: list[Training]
    ledger: Ledger
    run: RunFolder
    printed: str
    n_restored: int  # checkpoints, in all three trainings


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """One tiny demo. Do not change."""
    folder = tmp_path_factory.mktemp("demo")
    config = RunConfig(
        data=DataConfig(source=(str(write_text(folder, n_lines=600)),), tokenizer="byte", val_fraction=0.1),
        model=Architecture(n_layer=1, n_head=2, n_embd=16, block_size=T),
        optim=OptimConfig(lr=1e-2, min_lr=1e-3, warmup_steps=5),
        batch=BatchConfig(size=ROWS, micro_size=ROWS),
        train=TrainConfig(steps=140, eval_every=10, checkpoint_every=10),
        spikes=SpikeConfig(window=32, min_history=32, margin=48),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spike_demo, "CONFIG", config)
        patch.setattr(spike_demo, "POISON", POISON)
        patch.setattr(spike_demo, "AVERAGED", 5)
        results = spy(patch, spike_demo, "train_three_times")
        restored = spy(patch, recovery, "restore_checkpoint")
        printed = io.StringIO()
        run_demo(folder / "run", 3, TextConsole(file=printed, width=120))
    run = RunFolder(folder / "run")
    return Demo(results[0], Ledger(run.ledger), run, printed.getvalue(), len(restored))


def spy(patch: pytest.MonkeyPatch, module: ModuleType, name: str) -> list:
    """A list of what the function returns from now on."""
    real, returned = getattr(module, name), []

    def call(*args, **more):
        returned.append(real(*args, **more))
        return returned[-1]

    patch.setattr(module, name, call)
    return returned


def test_80_columns_break_no_figure_of_the_table():
    batches = [Batch(0, 1.0, 0), Batch(spike_demo.POISON.first, 1234.5, 10_000)]  # the loss never comes back
    trainings = [Training(name, batches, 12.3456) for name in ("roll back and skip", "no detection")]
    assert broken_at_80_columns(comparison(trainings, T)) == []


def a_shard(n_tokens: int = 2000) -> TokenShard:
    tokens = np.random.default_rng(0).integers(0, 40, n_tokens).astype(np.uint16)
    return TokenShard(tokens, np.array([0]), 41, 7, n_tokens, "", "", "")


def poisoned_windows(monkeypatch, growth: int) -> tuple[TokenShard, np.ndarray, np.ndarray]:
    """A shard, its poisoned tokens, and the windows of the samples of the first epoch,
    (windows, T + 1)."""
    monkeypatch.setattr(spike_demo, "POISON", Poison(first=5, batches=4, growth=growth))
    config = RunConfig(model=Architecture(block_size=T), batch=BatchConfig(size=ROWS), train=TrainConfig(seed=1))
    shard = a_shard()
    sampler = WindowSampler(len(shard.tokens), T, 1)
    starts = sampler.positions(np.arange(sampler.windows_per_epoch))
    return shard, poison(shard, config), starts[:, None] + np.arange(T + 1)


def test_the_poison_shuffles_the_windows_of_its_batches_and_no_other(monkeypatch):
    shard, poisoned, windows = poisoned_windows(monkeypatch, growth=4)
    before, after = shard.tokens[windows], poisoned[windows]
    changed = (before != after).any(axis=1)
    expected = np.zeros(len(windows), bool)
    expected[5 * ROWS : 9 * ROWS] = True
    np.testing.assert_array_equal(changed, expected)
    np.testing.assert_array_equal(np.sort(before), np.sort(after))  # each window keeps its bytes
    np.testing.assert_array_equal(shard.tokens == shard.eot_id, poisoned == shard.eot_id)
    np.testing.assert_array_equal(shard.tokens, a_shard().tokens)  # a copy was poisoned


def test_the_poison_grows_from_batch_to_batch(monkeypatch):
    shard, poisoned, windows = poisoned_windows(monkeypatch, growth=3)
    moved = (shard.tokens != poisoned)[windows[5 * ROWS : 9 * ROWS]].reshape(4, -1).mean(axis=1)
    assert 0.1 < moved[0] < moved[1] < moved[2]
    assert moved[3] > 0.75  # a few fall on an equal token


def test_all_three_see_the_same_until_the_poison(demo):
    assert [training.name for training in demo.trainings] == ["roll back and skip", "only skip updates", "no detection"]
    first, second, third = (training.batches[: POISON.first + 1] for training in demo.trainings)
    assert first == second == third
    assert first[-1].poisoned == ROWS
    assert not any(batch.poisoned for batch in first[:-1])


def test_the_first_goes_back_and_never_learns_from_the_poison_again(demo):
    event = demo.ledger.rollbacks[0]
    assert POISON.first < event["step"] <= POISON.first + POISON.growth + 1
    assert event["restored_step"] == 80
    first, end = event["skipped"]
    assert first == 80 * ROWS
    assert first <= event["samples"][0] < event["samples"][1] <= end
    assert end >= IDS[-1] + 1
    made = demo.trainings[0].made
    assert sorted(made) == list(range(140))
    assert not any(batch.poisoned for batch in made.values())
    metrics = [json.loads(line) for line in demo.run.metrics.read_text().splitlines()]
    assert [record["loss"] for record in metrics] == [made[step].loss for step in range(140)]


def test_the_second_restores_nothing_and_learns_what_the_detector_lets_pass(demo):
    assert demo.n_restored == len(demo.ledger.rollbacks)  # all of them are the first one's
    training = demo.trainings[1]
    steps = [batch.step for batch in training.batches]
    assert steps == sorted(steps)
    refused = [batch for batch in training.batches if training.made[batch.step] is not batch]
    assert refused
    assert all(batch.poisoned for batch in refused)
    assert sum(batch.poisoned for batch in training.batches) == len(IDS)  # each is computed once
    assert sum(batch.poisoned for batch in training.made.values()) < len(IDS)


def test_a_skipped_update_leaves_no_gradient_and_a_wider_window():
    config = RunConfig(
        model=Architecture(n_layer=1, n_head=1, n_embd=4, block_size=4),
        optim=OptimConfig(warmup_steps=0),
        batch=BatchConfig(size=2),
        train=TrainConfig(steps=5),
        spikes=SpikeConfig(window=4, min_history=4),
    )
    state, losses, before = build_state(config, 5), iter([1.0, 1.0, 1.0, 1.0, 50.0, 1.0]), []

    def gradients(model, ids, step):
        before.append((int(ids[0]), step, float(np.abs(model.grads.flat).sum())))
        model.grads.flat += 0.01
        return BatchResult(next(losses), 8)

    skip_updates(state, config, gradients)
    assert before == [(0, 0, 0), (2, 1, 0), (4, 2, 0), (6, 3, 0), (8, 4, 0), (10, 4, 0)]
    assert list(state.detector.losses) == [1.0, 1.0, 50.0, 1.0]


def test_the_third_learns_from_all_of_it(demo):
    training = demo.trainings[2]
    assert [batch.step for batch in training.batches] == list(range(140))
    assert [step for step, batch in training.made.items() if batch.poisoned] == list(range(85, 91))


def test_what_is_told_is_what_happened(demo):
    start, end = demo.ledger.rollbacks[0]["skipped"]
    assert f"the checkpoint of step 80 and left out the samples {start:,} to {end - 1:,}." in " ".join(
        demo.printed.split()
    )
    for training, poisoned in zip(demo.trainings, ("0", None, f"{len(IDS) * T:,}"), strict=True):
        (row,) = [line for line in demo.printed.splitlines() if line.startswith(f"│ {training.name}")]
        cells = [cell.strip() for cell in row.strip("│").split("│")]
        assert cells[1] == f"{training.val_loss:.4f}"
        assert poisoned in (None, cells[4])
    assert (demo.run.path / "spike.png").read_bytes().startswith(b"\x89PNG")


def test_the_run_folder_holds_the_data_that_was_trained_on(demo):
    """The shard of the run is the poisoned text, so the run can be resumed."""
    train_shard, _ = demo.run.load_shards()
    text = (demo.run.path.parent / "text.txt").read_text()
    clean = np.array(demo.run.load_tokenizer().encode(text[: int(len(text) * 0.9)]))
    assert train_shard.tokens[-1] == train_shard.eot_id
    changed = np.count_nonzero(train_shard.tokens[:-1] != clean)
    assert 0.3 * len(IDS) * T < changed < len(IDS) * T


def test_the_way_back_is_counted_on_clean_batches_from_the_first_poisoned_one(monkeypatch):
    monkeypatch.setattr(spike_demo, "POISON", Poison(first=3, batches=2))
    monkeypatch.setattr(spike_demo, "AVERAGED", 2)
    losses = [9.0, 2.0, 2.0, 1.0, 1.0, 3.0, 2.5, 1.5, 1.0]  # two poisoned ones with a low loss do not count
    batches = [Batch(step, loss, poisoned=8 * (step in (3, 4))) for step, loss in enumerate(losses)]
    training = Training("", batches, val_loss=0.0)
    assert training.batches_until_back == 3
    assert replace(training, batches=batches[:7]).batches_until_back is None


def test_a_ledger_without_rollbacks_says_so(tmp_path):
    assert in_plain_words(Ledger(tmp_path / "ledger.jsonl")) == ["The detector saw no spike."]


def test_without_matplotlib_there_is_no_plot(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(spike_demo, "train_three_times", lambda *args: [])
    monkeypatch.setattr(spike_demo, "curves", lambda *args: [])
    monkeypatch.setattr(spike_demo, "POISON", Poison(first=2, batches=1))
    tiny = replace(
        spike_demo.CONFIG,
        data=DataConfig(source=(str(write_text(tmp_path)),), tokenizer="byte"),
        model=Architecture(n_layer=1, n_head=2, n_embd=8, block_size=8),
    )
    monkeypatch.setattr(spike_demo, "CONFIG", tiny)
    printed = io.StringIO()
    run_demo(tmp_path / "run", 0, TextConsole(file=printed))
    assert "No plot: it needs matplotlib (pip install 'npllm[plot]')." in printed.getvalue()
    assert not (tmp_path / "run" / "spike.png").exists()


def test_the_run_of_the_demo_is_one_of_pretraining(demo):
    """So `npllm resume` can continue it."""
    assert stage_of(demo.run.config) == "pretrain"
