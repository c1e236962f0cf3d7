"""The stages after pretraining have the same bits on several ranks."""

import pytest
from jobs import job, needs_mpi
from small_runs import run, state_digests, untimed_metrics
from stage_runs import DEMONSTRATIONS, LABELLED, PREFERENCES, PROMPTS, ROLLOUT, pretrained, stage_arguments, write_jsonl

pytestmark = needs_mpi

# 8 responses in 4 micro-batches, for up to 4 ranks
ROLLOUT_OF_MANY = ROLLOUT | {"batch__size": 8, "train__steps": 4}
STAGES = {
    "sft": ("sft", "pretrained", {"data": "demonstrations.jsonl", "adapt__lora_rank": 2}),
    "classify": ("classify", "pretrained", {"data": "texts.jsonl", "classify__labels": 2, "classify__seeds": 2}),
    "reward": ("reward", "sft", {"data": "preferences.jsonl"}),
    "dpo": ("dpo", "sft", {"data": "preferences.jsonl"}),
    **{
        method: (
            "ppo",
            "sft",
            {"prompts": "prompts.jsonl", "reward": "reward", "ppo__method": method, **ROLLOUT_OF_MANY},
        )
        for method in ("ppo", "rloo", "grpo")
    },
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
    data = folder / "preferences.jsonl"
    assert run(*stage_arguments("reward", folder / "sft", folder / "reward", data=data)) == 0
    return folder


def words(folder, name, out):
    verb, start, changes = STAGES[name]
    files = {key: folder / changes[key] for key in ("data", "prompts", "reward") if key in changes}
    return stage_arguments(verb, folder / start, out, **changes | files)


QUICK = ("ppo", 2)
CASES = [(name, 2) for name in STAGES] + [(method, 4) for method in ("ppo", "rloo", "grpo")]


@pytest.mark.parametrize(
    ("name", "n_ranks"), [pytest.param(*case, marks=() if case == QUICK else pytest.mark.long) for case in CASES]
)
def test_a_stage_on_several_ranks(base, name, n_ranks):
    """PPO and its relatives share out the responses of a rollout, too."""
    alone, together = base / f"{name} alone", base / f"{name} on {n_ranks}"
    if not alone.exists():
        assert run(*words(base, name, alone)) == 0
    done = job(n_ranks, *words(base, name, together))
    assert done.returncode == 0, done.stderr
    assert state_digests(together) == state_digests(alone)
    assert untimed_metrics(together) == untimed_metrics(alone)
