"""The length of a stage on few records and on many, and that few are learnt."""

import numpy as np
import pytest
from small_runs import refused, run, summary, untimed_metrics
from stage_runs import DEMONSTRATIONS, PREFERENCES, pretrained, stage_arguments, write_jsonl

from npllm.finetuning.sft import SFTConfig, SFTSettings
from npllm.finetuning.stage_run import describe_length, fix_length
from npllm.optim import BatchConfig
from npllm.rlhf.dpo import DPOConfig
from npllm.rlhf.reward import RewardConfig
from npllm.runs.config_file import load_config
from npllm.training.config import TrainConfig

pytestmark = pytest.mark.usefixtures("quick")
SECTIONS = {SFTConfig: "sft", RewardConfig: "reward", DPOConfig: "dpo"}
TO_THE_STAGE = {"batch__size": None, "batch__micro_size": 32, "train__steps": None, "train__eval_every": 100}


def fixed(config, n_rows):
    """(batch size, updates) of a run on n_rows records, and its config."""
    done = fix_length(config, getattr(config, SECTIONS[type(config)]), n_rows)
    return (done.batch.size, done.train.steps), done


@pytest.mark.parametrize(
    ("kind", "n_rows", "expected"),
    [
        (SFTConfig, 10_000, (16, 1875)),  # 3 epochs
        (SFTConfig, 1067, (16, 200)),
        (SFTConfig, 500, (7, 214)),  # more updates by smaller batches
        (SFTConfig, 21, (1, 200)),  # and, if the batches cannot be smaller, by more epochs
        (SFTConfig, 1, (1, 200)),
        (DPOConfig, 3200, (32, 100)),
        (DPOConfig, 500, (15, 33)),
        (DPOConfig, 32, (4, 32)),
        (DPOConfig, 2, (2, 32)),  # no batch is larger than all there is
        (RewardConfig, 32, (4, 50)),
    ],
)
def test_few_records_make_small_batches_and_enough_updates(kind, n_rows, expected):
    found, config = fixed(kind(), n_rows)
    assert found == expected
    assert config.batch.micro_size <= config.batch.size
    settings = getattr(config, SECTIONS[kind])
    assert settings.epochs >= settings.usual.epochs
    assert settings.epochs * n_rows == pytest.approx(expected[0] * expected[1], abs=expected[0])


def test_what_was_set_stays():
    def of(n_rows=21, **sections):
        return fixed(SFTConfig(**sections), n_rows)

    sixteen, four_epochs = BatchConfig(size=16, micro_size=8), SFTSettings(epochs=4)
    assert of(batch=sixteen)[0] == (16, 200)  # more epochs
    assert of(sft=four_epochs)[0] == (1, 84)  # smaller batches
    found, config = of(batch=sixteen, sft=four_epochs)
    assert (*found, config.batch, config.sft) == (16, 5, sixteen, four_epochs)
    found, config = of(train=TrainConfig(steps=7, eval_every=50))
    assert (*found, config.train.eval_every) == (1, 7, 50)


def test_a_short_run_looks_at_the_held_out_records_too():
    assert fixed(DPOConfig(), 32)[1].train.eval_every == 8
    assert fixed(DPOConfig(), 100_000)[1].train.eval_every == 100


def test_over_the_same_records_again_and_again_no_spike_is_looked_for():
    """With the detector, a small run on 12 demonstrations gave up after ten rollbacks:
    its losses were nearly 0, so every harder row was a spike."""
    assert [fixed(SFTConfig(), n_rows)[1].spikes.enabled for n_rows in (21, 1000)] == [False, True]
    config = SFTConfig(batch=BatchConfig(size=4), train=TrainConfig(steps=200))
    assert [fixed(config, n_rows)[1].spikes.enabled for n_rows in (4, 200)] == [False, True]


def test_the_length_is_said():
    _, config = fixed(RewardConfig(), 32)
    line = "updates: 50, pairs in each: 4; passes over all 32: 6.25; no detection of loss spikes"
    assert describe_length(config, 32, "pairs") == line
    _, config = fixed(DPOConfig(), 3200)
    line = "updates: 100, pairs in each: 32; passes over all 3,200: 1"
    assert describe_length(config, 3200, "pairs") == line


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    return pretrained(folder, model__n_embd=32, model__block_size=48, train__steps=60, optim__lr=1e-2)


def learnt(verb, base, out, records, **changes) -> list[dict]:
    """The log of a run whose batch size and length are chosen by the stage."""
    data = write_jsonl(out.with_suffix(".jsonl"), records)
    assert run(*stage_arguments(verb, base, out, data=data, **TO_THE_STAGE | changes)) == 0
    return untimed_metrics(out)


@pytest.fixture(scope="module")
def answers(base, tmp_path_factory):
    out = tmp_path_factory.mktemp("sft") / "run"
    learnt("sft", base, out, DEMONSTRATIONS * 2)
    return out


def test_a_dozen_demonstrations_are_learnt(answers):
    """With 20 updates of warm-up and batches of 16 rows, a run would end before it has
    learnt anything."""
    losses = [record["loss"] for record in untimed_metrics(answers)]
    assert (len(losses), load_config(answers / "config.toml", SFTConfig).batch.size) == (200, 1)
    assert losses[0] > 2.0
    assert max(losses[-8:]) < 0.1
    assert sum("val_loss" in record for record in untimed_metrics(answers)) == 4


def test_a_dozen_pairs_are_learnt(answers, tmp_path):
    log = learnt("dpo", answers, tmp_path / "dpo", PREFERENCES, optim__lr=1e-3)
    assert (len(log), log[0]["batch"]) == (32, 4)
    assert log[0]["loss"] == pytest.approx(np.log(2), abs=1e-3)
    assert np.mean([record["accuracy"] for record in log[-8:]]) == 1.0
    assert max(record["loss"] for record in log[-8:]) < 0.5
    assert summary(tmp_path / "dpo")["val_loss"] < np.log(2)


@pytest.mark.parametrize(("steps", "said"), [(9, True), (10, False)])
def test_a_run_too_short_to_learn_says_so(base, tmp_path, capsys, steps, said):
    out = tmp_path / "run"
    learnt("sft", base, out, DEMONSTRATIONS, train__steps=steps)
    note = "Fewer than 10 updates teach a model little; raise train.steps or sft.epochs.\n"
    assert (note in capsys.readouterr().out) == said
    assert run("resume", out) == 0
    assert note not in capsys.readouterr().out  # at the start, and once


@pytest.mark.parametrize(("verb", "epochs"), [("sft", "sft.epochs = 1.0\n"), ("dpo", "")])
def test_a_config_that_lost_its_length_is_refused(answers, tmp_path, capsys, verb, epochs):
    out = tmp_path / "run"
    learnt(verb, answers, out, DEMONSTRATIONS if verb == "sft" else PREFERENCES, train__steps=2)
    config = (out / "config.toml").read_text()
    for line, name in (("steps = 2\n", "train.steps"), ("size = 1\n" if verb == "sft" else "size = 4\n", "batch.size")):
        (out / "config.toml").write_text(config.replace(f"\n{line}", "\n", 1))
        assert f"config.toml has no {name}; restore" in refused(capsys, "resume", out, exit_code=2)


def test_pretraining_has_a_batch(tmp_path, capsys):
    words = ["pretrain", "--data.source", __file__, "--out", tmp_path / "run", "--batch.size", "None"]
    assert "batch.size is none, which only sft, reward, dpo and ppo accept" in refused(capsys, *words, exit_code=2)
