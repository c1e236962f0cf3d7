"""Every later stage, stopped or killed and then resumed, ends with the same bits."""

import shutil

import numba
import proofs
import pytest
from small_runs import (
    checkpoints,
    content,
    run,
    state_digests,
    stop_after,
    summary,
    untimed_metrics,
)
from stage_runs import (
    DEMONSTRATIONS,
    PREFERENCES,
    PROMPTS,
    conversations,
    pretrained,
    stage_arguments,
    write_jsonl,
)

from npllm.rlhf.rollout import NUMBERS
from npllm.runs.checkpoint import load_checkpoint
from npllm.training import train

LORA = {"adapt__lora_rank": 2}
# A rollout is 8 responses, which two epochs of 2 minibatches learn from: updates 1 to 4
# learn from the first rollout, 5 to 8 from the second.
PPO = {"ppo__rollout_size": 8, "ppo__epochs": 2, "ppo__group": 2, "ppo__max_tokens": 6, "ppo__max_update_kl": 1e9}
PPO |= {"train__steps": 9, "train__checkpoint_every": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pretrained run with dropout, an SFT run from it, reward models, and records."""
    folder = tmp_path_factory.mktemp("stages")
    write_jsonl(folder / "demonstrations.jsonl", DEMONSTRATIONS + conversations(DEMONSTRATIONS[:2]))
    write_jsonl(folder / "preferences.jsonl", PREFERENCES)
    write_jsonl(folder / "prompts.jsonl", PROMPTS)
    spacious = {"model__block_size": 48}  # a model of conversations needs three more tokens for a pair
    base = pretrained(folder, model__dropout=0.2, train__steps=30, optim__lr=1e-2, **spacious)
    data = folder / "demonstrations.jsonl"
    assert run(*stage_arguments("sft", base, folder / "sft", data=data, train__steps=40)) == 0
    data = folder / "preferences.jsonl"
    for name, adapt in (("reward", {}), ("reward-lora", LORA)):
        assert run(*stage_arguments("reward", folder / "sft", folder / name, data=data, **adapt)) == 0
    return folder


STAGES = {
    "sft": ("sft", "pretrained", {"data": "demonstrations.jsonl"}),
    "sft with lora": ("sft", "pretrained", {"data": "demonstrations.jsonl", **LORA}),
    "sft with frozen blocks": ("sft", "pretrained", {"data": "demonstrations.jsonl", "adapt__frozen_blocks": 1}),
    "reward": ("reward", "sft", {"data": "preferences.jsonl"}),
    "dpo": ("dpo", "sft", {"data": "preferences.jsonl"}),
    "ppo": ("ppo", "sft", {"prompts": "prompts.jsonl", "reward": "reward", **PPO}),
    "ppo with lora": ("ppo", "sft", {"prompts": "prompts.jsonl", "reward": "reward-lora", **PPO, **LORA}),
    "grpo": ("ppo", "sft", {"prompts": "prompts.jsonl", "reward": "reward", **PPO, "ppo__method": "grpo"}),
}
of_every_stage = pytest.mark.parametrize("stage", STAGES)
of_ppo = pytest.mark.parametrize("stage", [name for name in STAGES if "ppo" in name or "grpo" in name])


def arguments(stage, folder, out) -> list[str]:
    verb, base, changes = STAGES[stage]
    files = {name: folder / changes[name] for name in ("data", "prompts", "reward") if name in changes}
    return stage_arguments(verb, folder / base, out, **changes | files)


@pytest.fixture(scope="module")
def undisturbed(folder):
    """A function that returns a stage's undisturbed run; its first call makes it."""

    def of(stage):
        out = folder / f"undisturbed {stage}"
        if not out.exists():
            assert run(*arguments(stage, folder, out)) == 0
        return out

    return of


def assert_same_run(one, other):
    assert state_digests(one) == state_digests(other)
    assert untimed_metrics(one) == untimed_metrics(other)
    clock = {"seconds": None}
    assert summary(one) | clock == summary(other) | clock


def used_minibatches(out) -> float:
    """How many minibatches of the rollout in the newest checkpoint were learnt from."""
    return load_checkpoint(checkpoints(out)[-1]).arrays["rollout_numbers"][NUMBERS.index("minibatches_used")]


def kill_after(monkeypatch, step, *words):
    """Run `npllm WORDS` and kill it after this step, without a checkpoint for that."""

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
            run(*words)


@of_every_stage
def test_stopped_twice_and_resumed(folder, tmp_path, monkeypatch, undisturbed, stage):
    expected = undisturbed(stage)
    out = tmp_path / "run"
    stop_after(monkeypatch, 1, 3)
    assert run(*arguments(stage, folder, out)) == 130
    assert checkpoints(out)[-1].name == "step-00000001.h5"
    assert run("resume", out) == 130
    assert untimed_metrics(out) == untimed_metrics(expected)[:3]
    assert run("resume", out) == 0
    assert_same_run(out, expected)
    proofs.count(proofs.FAULTS, 2)


@of_every_stage
def test_killed_and_begun_again_from_an_older_checkpoint(folder, tmp_path, monkeypatch, undisturbed, stage):
    out = tmp_path / "run"
    kill_after(monkeypatch, 5, *arguments(stage, folder, out))
    assert checkpoints(out)[-1].name == "step-00000004.h5"
    assert run("resume", out) == 0
    assert_same_run(out, undisturbed(stage))
    proofs.count(proofs.FAULTS)


@of_ppo
@pytest.mark.parametrize("step", [2, 3, 6])
def test_stopped_between_the_epochs_of_a_rollout(folder, tmp_path, monkeypatch, undisturbed, stage, step):
    """The resumed run learns from the same responses and does not generate new ones."""
    out = tmp_path / "run"
    stop_after(monkeypatch, step)
    assert run(*arguments(stage, folder, out)) == 130
    assert used_minibatches(out) == (step - 1) % 4 + 1 < 4
    metrics = untimed_metrics(undisturbed(stage))
    assert ["objective/kl" in record for record in metrics] == [step % 4 == 1 for step in range(1, 10)]
    assert run("resume", out) == 0
    assert_same_run(out, undisturbed(stage))
    proofs.count(proofs.FAULTS)


@of_ppo
def test_killed_in_the_midst_of_a_rollout(folder, tmp_path, monkeypatch, undisturbed, stage):
    """Killed in the second rollout, the run restores a checkpoint before or within it.

    With a checkpoint every 4 steps that is the end of the first rollout, every 3 steps
    the middle of the second.
    """
    for step, every, used in ((7, 4, 4), (7, 3, 2)):
        out = tmp_path / f"every-{every}"
        kill_after(monkeypatch, step, *arguments(stage, folder, out), "--train.checkpoint_every", str(every))
        assert used_minibatches(out) == used
        assert run("resume", out) == 0
        assert_same_run(out, undisturbed(stage))
        proofs.count(proofs.FAULTS)


def test_two_threads_write_and_learn_the_same(folder, tmp_path, undisturbed):
    threads = numba.get_num_threads()
    if numba.config.NUMBA_NUM_THREADS < 2:
        pytest.skip("this process may use one thread only")
    try:
        for number in (1, 2):
            out = tmp_path / f"{number}-threads"
            assert run(*arguments("ppo", folder, out), "--train.threads", str(number)) == 0
            assert_same_run(out, undisturbed("ppo"))
    finally:
        numba.set_num_threads(threads)


def test_a_run_needs_none_of_its_ancestors(folder, tmp_path, monkeypatch, undisturbed):
    copies = tmp_path / "copies"
    copies.mkdir()
    for name in ("sft", "reward", "prompts.jsonl"):
        (shutil.copytree if (folder / name).is_dir() else shutil.copy)(folder / name, copies / name)
    out = tmp_path / "run"
    stop_after(monkeypatch, 3)
    assert run(*arguments("ppo", copies, out)) == 130
    shutil.rmtree(copies)
    assert run("resume", out) == 0
    assert_same_run(out, undisturbed("ppo"))
    before = content(out)
    assert run("resume", out) == 0  # a finished run stays as it is
    assert content(out) == before
