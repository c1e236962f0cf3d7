"""The stages after pretraining have the same bits on several ranks."""

import pytest
from jobs import job, needs_mpi
from small_runs import run, state_digests, untimed_metrics
from stage_runs import DEMONSTRATIONS, LABELLED, PREFERENCES, PROMPTS, ROLLOUT, pretrained, stage_arguments, write_jsonl

pytestmark = needs_mpi

STAGES = {
    "sft": ("sft", "pretrained", {"data": "demonstrations.jsonl", "adapt__lora_rank": 2}),
    "classify": ("classify", "pretrained", {"data": "texts.jsonl", "classify__labels": 2, "classify__seeds": 2}),
    "reward": ("reward", "sft", {"data": "preferences.jsonl"}),
    "dpo": ("dpo", "sft", {"data": "preferences.jsonl"}),
    "ppo": ("ppo", "sft", {"prompts": "prompts.jsonl", "reward": "reward alone", **ROLLOUT}),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with a pretrained run and the data of the stages."""
    folder = tmp_path_factory.mktemp("stages")
    for name, rows in (("demonstrations", DEMONSTRATIONS), ("preferences", PREFERENCES), ("prompts", PROMPTS)):
        write_jsonl(folder / f"{name}.jsonl", rows)
    write_jsonl(folder / "texts.jsonl", LABELLED)
    pretrained(folder)
    data = folder / "demonstrations.jsonl"
    assert run(*stage_arguments("sft", folder / "pretrained", folder / "sft", data=data)) == 0
    return folder


def words(folder, name, out):
    verb, start, changes = STAGES[name]
    files = {key: folder / changes[key] for key in ("data", "prompts", "reward") if key in changes}
    return stage_arguments(verb, folder / start, out, **changes | files)


@pytest.mark.parametrize(
    "name", ["ppo", *(pytest.param(name, marks=pytest.mark.long) for name in STAGES if name != "ppo")]
)
def test_a_stage_on_two_ranks(base, name):
    """PPO writes its rollouts on every rank, and divides the minibatches."""
    if name == "ppo" and not (base / "reward alone").exists():
        assert run(*words(base, "reward", base / "reward alone")) == 0
    alone, together = base / f"{name} alone", base / f"{name} together"
    if not alone.exists():
        assert run(*words(base, name, alone)) == 0
    done = job(2, *words(base, name, together))
    assert done.returncode == 0, done.stderr
    assert state_digests(together) == state_digests(alone)
    assert untimed_metrics(together) == untimed_metrics(alone)
