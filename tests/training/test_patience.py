"""`--train.patience`: training ends when the validation loss no longer falls."""

import numpy as np
import pytest
from reliability.small_training import CONFIG, TOKENS, V, assert_same_bits, events, make_run, train_on, with_training
from small_runs import (
    content,
    pretrain_arguments,
    refused,
    run,
    state_digests,
    stop_after,
    summary,
    untimed_metrics,
    write_text,
)
from stage_runs import DEMONSTRATIONS, PREFERENCES, PROMPTS, pretrained, stage_arguments, write_jsonl

from npllm.runs.checkpoint_store import CheckpointStore
from npllm.runs.config_file import load_config
from npllm.runs.ledger import Ledger
from npllm.training import train
from npllm.training.config import RunConfig, TrainConfig
from npllm.training.evaluation import quick_loss
from npllm.training.length import Phase, RunLength

pytestmark = pytest.mark.usefixtures("quick")

# Tokens of which only some are learnt. So their loss falls, and then rises.
HALF_KNOWN = np.concatenate([TOKENS[:100], np.random.default_rng(1).integers(0, V, 60).astype(np.uint16)])
PATIENT = with_training(CONFIG, steps=200, eval_every=10, checkpoint_every=16, patience=2)
# Four lines: the letters are learnt first, then the text by heart.
BY_HEART = {
    "optim__lr": 0.02,
    "model__n_embd": 32,
    "data__val_fraction": 0.3,
    "train__steps": 400,
    "train__eval_every": 10,
    "train__checkpoint_every": 30,
    "train__patience": 3,
}


def train_patiently(folder, config=PATIENT):
    return train_on(folder, config, validate=lambda model: quick_loss(model, HALF_KNOWN))


def val_losses(run_folder) -> dict[int, float]:
    return {record["step"]: record["val_loss"] for record in untimed_metrics(run_folder) if "val_loss" in record}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder and the final state of a run that ended early."""
    run = make_run(tmp_path_factory.mktemp("undisturbed") / "run")
    return run, train_patiently(run)


def test_it_ends_after_so_many_evaluations_that_are_not_the_best(undisturbed):
    run, state = undisturbed
    losses = val_losses(run.path)
    best = min(losses, key=losses.get)
    assert state.step == max(losses) == best + 2 * 10 < 200
    assert events(run) == [{"event": "ended_early", "step": state.step, "steps": 200}]
    assert CheckpointStore(run.checkpoints, keep=2, every=16).best().step == best > 0
    assert load_config(run.config, RunConfig) == with_training(PATIENT, steps=state.step)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("moment", ["after the decision", "after the last checkpoint", "between evaluations"])
def test_a_run_that_was_killed_ends_at_the_same_step(tmp_path, monkeypatch, undisturbed, moment):
    expected, run = undisturbed, make_run(tmp_path / "run")
    end = expected[1].step

    def kill(*_):
        raise Killed

    with monkeypatch.context() as patch:
        if moment == "after the decision":
            patch.setattr(train, "append_metrics", lambda path, record: record["step"] < end or kill())
        elif moment == "after the last checkpoint":
            patch.setattr(train, "rewrite_config", kill)
        else:
            patch.setattr(train, "append_metrics", lambda path, record: record["step"] < end - 1 or kill())
        with pytest.raises(Killed):
            train_patiently(run)
    assert (events(run) == []) == (moment == "between evaluations")
    assert_same_bits(train_patiently(run), expected[1])
    assert events(run) == events(expected[0])
    assert load_config(run.config, RunConfig).train.steps == end


def test_without_its_last_checkpoints_it_ends_with_the_same_bits(tmp_path, undisturbed):
    """The learning rates of the updates that are made again are those of the planned
    length."""
    run, end = make_run(tmp_path / "run"), undisturbed[1].step
    train_patiently(run)
    (run.checkpoints / f"step-{end:08d}.h5").unlink()
    state = train_patiently(run, load_config(run.config, RunConfig))
    assert_same_bits(state, undisturbed[1])


def length_of(ledger, steps, patience=2) -> RunLength:
    return RunLength(RunConfig(train=TrainConfig(steps=steps, patience=patience)), ledger)


def test_the_phases_of_a_run_that_ended_early(tmp_path):
    """They keep the schedule of the planned length, also when the run is extended."""
    ledger = Ledger(tmp_path / "ledger.jsonl", writable=True)
    length_of(ledger, 100).end_early(60)
    for steps in (100, 60):  # before and after config.toml is written
        length = length_of(ledger, steps)
        assert (length.phase(59), length.is_over(59), length.is_over(60)) == (Phase(0, 100), False, True)
    assert not length_of(ledger, 80).is_over(60), "a number that the user has set since"
    assert not length_of(ledger, 100, patience=None).is_over(60), "the user is patient after all"
    ledger.extended(60, 1.0, 30.0)
    extended = length_of(ledger, 60)
    assert [extended.phase(step) for step in (0, 59, 60)] == [Phase(0, 100), Phase(0, 100), Phase(60, None)]
    assert not extended.is_over(60)
    assert extended.evaluations_since(40, 85, 10) == 2, "those before the extension do not count"
    extended.end_early(90)
    again = length_of(ledger, 90)
    assert (again.phase(59), again.phase(70), again.is_over(89), again.is_over(90)) == (
        Phase(0, 100),
        Phase(60, None),
        False,
        True,
    )


def test_a_time_budget_may_end_early(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl", writable=True)
    ledger.decided_length(10, 200, 9.0)
    length_of(ledger, None).end_early(70)
    for steps in (None, 70):
        length = length_of(ledger, steps)
        assert (length.phase(9), length.phase(69)) == (Phase(0, None), Phase(0, 200))
        assert (length.is_over(69), length.is_over(70)) == (False, True)


def test_pretraining_says_that_and_why_it_ended(tmp_path, capsys):
    text, out = write_text(tmp_path, n_lines=4), tmp_path / "run"
    assert run(*pretrain_arguments(text, out, **BY_HEART)) == 0
    losses, end = val_losses(out), summary(out)["steps"]
    best = min(losses, key=losses.get)
    assert end == best + 30 < 400
    sentence = (
        f"Training ended early, at step {end}: the last 3 validation losses are not below the lowest one, "
        f"{losses[best]:.4f} at step {best} (train.patience)."
    )
    assert sentence in capsys.readouterr().out.splitlines()
    assert f"\nsteps = {end}\n" in (out / "config.toml").read_text()
    assert run("verify", out) == 0
    before = content(out)
    assert run("resume", out) == 0
    assert f"is finished: all {end} updates are made." in capsys.readouterr().out
    assert content(out) == before
    assert run("extend", out, "--minutes", "1e-9") == 0
    assert summary(out)["steps"] == end + 1, "the evaluations before the extension end nothing"
    assert run("verify", out) == 0


def test_a_stopped_run_ends_at_the_same_step(tmp_path, monkeypatch):
    text, whole, parts = write_text(tmp_path, n_lines=4), tmp_path / "whole", tmp_path / "parts"
    assert run(*pretrain_arguments(text, whole, **BY_HEART)) == 0
    end = summary(whole)["steps"]
    stop_after(monkeypatch, end - 15, end - 10, end)
    assert run(*pretrain_arguments(text, parts, **BY_HEART)) == 130
    assert run("resume", parts) == 130
    assert run("resume", parts) == 0, "after the last step there is nothing to stop"
    assert state_digests(parts) == state_digests(whole)
    assert untimed_metrics(parts) == untimed_metrics(whole)


def test_every_stage_with_a_validation_loss_may_end_early(tmp_path, capsys):
    """With so high a learning rate nothing gets better. PPO has no validation loss."""
    demonstrations = write_jsonl(tmp_path / "demonstrations.jsonl", DEMONSTRATIONS)
    preferences = write_jsonl(tmp_path / "preferences.jsonl", PREFERENCES)
    texts = [{"text": f"{label} {'a ' * n}", "label": label} for n in range(6) for label in ("cat", "dog")]
    data = {
        "sft": demonstrations,
        "reward": preferences,
        "dpo": preferences,
        "classify": write_jsonl(tmp_path / "texts.jsonl", texts),
    }
    base = pretrained(tmp_path)
    patient = {"train__patience": 1, "train__steps": 40, "train__eval_every": 1, "optim__lr": 1.0}
    bases, few = {"sft": base, "classify": base}, {"classify": ("--classify.labels", 2, "--classify.seeds", 2)}
    for verb, file in data.items():
        out = tmp_path / verb
        words = stage_arguments(verb, bases.get(verb, tmp_path / "sft"), out, data=file, **patient)
        assert run(*words, "--spikes.enabled", "False", *few.get(verb, ())) == 0, verb
        assert summary(out)["steps"] < 40, verb
        assert "Training ended early, at step" in capsys.readouterr().out, verb
    prompts = write_jsonl(tmp_path / "prompts.jsonl", PROMPTS)
    ppo = {"reward": tmp_path / "reward", "prompts": prompts, "ppo__max_tokens": 4, "ppo__rollout_size": 4}
    ppo = stage_arguments("ppo", tmp_path / "sft", tmp_path / "ppo", **ppo, ppo__group=2, train__patience=1)
    message = refused(capsys, *ppo, exit_code=2)
    assert message.endswith("train.patience is 1, but npllm ppo measures no validation loss; leave it out.")
    assert not (tmp_path / "ppo").exists()


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "soon"])
def test_a_patience_that_cannot_be(tmp_path, capsys, value):
    words = pretrain_arguments(write_text(tmp_path), tmp_path / "run", train__patience=value)
    message = refused(capsys, *words, exit_code=2)
    assert "train.patience" in message
    assert not (tmp_path / "run").exists()
