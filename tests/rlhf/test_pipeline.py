"""The whole pipeline on a task in a user's file: stages, report card, resuming."""

import json
import shutil

import numpy as np
import pytest
from small_runs import refused, run

from npllm.report.confidence import half_width
from npllm.rlhf import overoptimisation
from npllm.rlhf.judging import Verdict, distinct
from npllm.rlhf.ppo_run import PPOConfig
from npllm.rlhf.report_card import grade
from npllm.rlhf.tasks import Response
from npllm.rlhf.tasks.code import parses
from npllm.rlhf.tasks.paths import LONGEST_WALK, NODES, Paths
from npllm.runs.checkpoint import checkpoint_files
from npllm.runs.config_file import load_config
from npllm.runs.metrics import read_metrics

TASK = '''
"""Answer a letter with as many of the same letter as you like, up to four."""

from dataclasses import replace

from npllm.data.records import Demonstration
from npllm.finetuning.sft import SFTConfig
from npllm.model import Architecture
from npllm.optim import BatchConfig
from npllm.rlhf.dpo import DPOConfig
from npllm.rlhf.ppo_settings import PPOSettings
from npllm.rlhf.ppo_run import PPOConfig
from npllm.rlhf.reward import RewardConfig
from npllm.rlhf.tasks import Recipe, Task
from npllm.training.config import DataConfig, RunConfig, TrainConfig

SHORT = {"batch": BatchConfig(size=8, micro_size=8), "train": TrainConfig(steps=8, eval_every=8, checkpoint_every=4)}


def improvement(method):
    settings = PPOSettings(method=method, rollout_size=16, group=4, max_tokens=5, epochs=2)
    return PPOConfig(ppo=settings, **SHORT)


class Echo(Task):
    name = "echo"
    recipe = Recipe(
        pretrain=RunConfig(
            data=DataConfig(tokenizer="char"),
            model=Architecture(n_layer=1, n_head=2, n_embd=16, block_size=8),
            **SHORT,
        ),
        sft=SFTConfig(**SHORT),
        reward=RewardConfig(**SHORT),
        ppo=improvement("ppo"),
        rloo=improvement("rloo"),
        grpo=improvement("grpo"),
        dpo=DPOConfig(**SHORT),
        responses_per_prompt=24,
        n_pairs=40,
        n_judged=12,
    )

    def corpus(self):
        return "aaaa bbbb cc ab " * 40

    def demonstrations(self):
        return [Demonstration(letter, letter * n) for letter in "abc" for n in range(1, 5)]

    def prompts(self):
        return ["a", "b", "c"]

    def gold(self, response):
        return response.text.count(response.prompt) / 5
'''


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """The folder of a task and of its pipeline with two seeds, `out`. Do not change."""
    folder = tmp_path_factory.mktemp("pipeline")
    (folder / "echo.py").write_text(TASK)
    assert run("rlhf", "--task", folder / "echo.py", "--out", folder / "out", "--seeds", 2) == 0
    return folder


def test_every_method_has_its_figures(pipeline):
    summary = json.loads((pipeline / "out" / "summary.json").read_text())
    assert summary["task"] == "echo"
    assert summary["seeds"] == 2
    assert list(summary["methods"]) == ["sft", "best of 16", "ppo", "rloo", "grpo", "dpo"]
    sft, best = summary["methods"]["sft"], summary["methods"]["best of 16"]
    assert sft["kl"] == 0.0
    assert sft["win_rate"] == 0.5
    assert best["proxy"] > sft["proxy"], "the best of 16 by the proxy has no better proxy"
    assert best["kl"] == pytest.approx(np.log(16) - 15 / 16)
    assert 0 < summary["methods"]["ppo"]["kl"] < 5


def test_the_report_card_shows_samples_and_the_plot(pipeline):
    card = (pipeline / "out" / "report_card.md").read_text()
    assert card.count("[ppo, gold") == 4
    assert "![" in card
    assert (pipeline / "out" / "overoptimisation.png").stat().st_size > 10_000


def test_the_same_command_goes_on(pipeline, tmp_path, capsys):
    """One of two pipelines has lost its last run and its preferences.

    Only that run is made again, with the same bits.
    """
    out = shutil.copytree(pipeline / "out", tmp_path / "out")
    before = {path: path.read_bytes() for path in out.rglob("summary.json")}
    for path in sorted((out / "seed-1" / "dpo").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (out / "seed-1" / "dpo").rmdir()
    (out / "seed-1" / "preferences.jsonl").unlink()
    capsys.readouterr()
    assert run("rlhf", "--task", pipeline / "echo.py", "--out", out, "--seeds", 2) == 0
    printed = capsys.readouterr().out
    assert "dpo ─" in printed
    assert "reward ─" not in printed
    for path, content in before.items():
        made, kept = json.loads(path.read_text()), json.loads(content)
        assert made | {"seconds": 0} == kept | {"seconds": 0}, path


@pytest.fixture(scope="module")
def study(pipeline, tmp_path_factory):
    """A copy of the pipeline, with a small over-optimisation study at its end."""
    out = shutil.copytree(pipeline / "out", tmp_path_factory.mktemp("study") / "out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overoptimisation, "PAIRS", (4, 8, 10_000))
        patch.setattr(overoptimisation, "PENALTIES", (0.3,))
        patch.setattr(overoptimisation, "MOST_OF", 4)
        assert run("rlhf", "--task", pipeline / "echo.py", "--out", out, "--seeds", 2, "--overoptimise") == 0
    return out


def test_reward_models_learn_from_nested_subsets_of_what_the_pipelines_own_learns_from(study):
    """They do not learn from held-out pairs, which are there to test them."""
    below = study / "seed-0" / "overoptimise"

    def learnt_from(folder) -> list[str]:
        return [*folder.glob("data/train.jsonl"), *folder.glob("data/val.jsonl")]

    few, more = (
        {line for path in learnt_from(below / f"reward-{size}") for line in path.read_text().splitlines()}
        for size in (4, 8)
    )
    all_of_them = set((study / "seed-0" / "reward" / "data" / "train.jsonl").read_text().splitlines())
    assert few < more <= all_of_them
    assert not (below / "reward-10000").exists()


def test_policies_differ_in_their_penalty_and_reward_model_only(study):
    below = study / "seed-1" / "overoptimise"
    configs = {path.name: load_config(path / "config.toml", PPOConfig) for path in below.glob("ppo-*")}
    assert {name: (config.ppo.kl_coef, config.ppo.kl_target) for name, config in configs.items()} == {
        "ppo-4-kl-0": (0.0, 0.0),
        "ppo-8-kl-0": (0.0, 0.0),
        "ppo-4-kl-0.3": (0.3, 0.0),
    }
    assert {config.train.steps for config in configs.values()} == {2 * 8}
    assert {config.train.seed for config in configs.values()} == {1}
    for size in (4, 8):
        own = (below / f"ppo-{size}-kl-0" / "models" / "reward.h5").read_bytes()
        assert own == checkpoint_files(below / f"reward-{size}" / "checkpoints")[-1].read_bytes()


def test_the_figures_of_overoptimisation(study):
    rows = json.loads((study / "summary.json").read_text())["overoptimisation"]
    keys = [(row["method"], row["pairs"], row["kl_coef"]) for row in rows]
    assert keys == [("ppo", 4, 0), ("ppo", 8, 0), ("ppo", 4, 0.3), ("best of n", 4, 0), ("best of n", 8, 0)]
    logs = [read_metrics(study / f"seed-{seed}/overoptimise/ppo-4-kl-0/metrics.jsonl") for seed in range(2)]
    rollouts = [[line for line in log if "rollout/length" in line] for log in logs]
    for name, place in {"gold_first": 0, "gold_last": -1}.items():
        assert rows[0][name] == pytest.approx(np.mean([of_seed[place]["objective/gold"] for of_seed in rollouts]))
    assert rows[0]["kl_last"] == pytest.approx(np.mean([of_seed[-1]["objective/exact_kl"] for of_seed in rollouts]))
    assert rows[2]["alpha"] is None
    assert rows[3]["kl_last"] == pytest.approx(np.log(4) - 3 / 4)
    assert rows[3]["gold_first"] == rows[4]["gold_first"], "the best of one depends on the reward model"
    assert rows[3]["proxy_last"] > 0.5, "the best of 4 by the proxy is hardly better than the mean"
    card = (study / "report_card.md").read_text()
    assert "| ppo | 4 | 0.3 |" in card
    assert "](reward_hacking.png)" in card
    assert (study / "reward_hacking.png").stat().st_size > 10_000


def test_too_few_preferences_to_overoptimise_are_an_error(pipeline, capsys):
    arguments = ("--task", pipeline / "echo.py", "--out", pipeline / "out", "--seeds", 2, "--overoptimise")
    assert "needs 64 preferences" in refused(capsys, "rlhf", *arguments, exit_code=2)


def test_wrong_tasks_are_refused(tmp_path, capsys):
    assert "neither a Python file nor one of paths, code" in refused(capsys, "rlhf", "--task", "nothing", exit_code=2)
    (tmp_path / "empty.py").write_text("x = 1\n")
    assert "0 subclasses of Task" in refused(capsys, "rlhf", "--task", tmp_path / "empty.py", exit_code=2)


def test_a_gold_reward_that_says_nothing_is_refused(tmp_path, capsys):
    (tmp_path / "flat.py").write_text(TASK.replace("response.text.count(response.prompt) / 5", "0.5"))
    message = refused(capsys, "rlhf", "--task", tmp_path / "flat.py", "--out", tmp_path / "out", exit_code=3)
    assert "told no two finished responses apart" in message


def test_gold_of_paths():
    task = Paths()
    start = int(np.flatnonzero(task.shortest == 3)[0])
    middle = next(n for n in np.flatnonzero(task.edges[start]) if task.edges[n, 0])
    walk = NODES[middle] + NODES[0]
    assert task.gold(Response(NODES[start], walk, True)) == 1.0
    assert task.gold(Response(NODES[start], walk, False)) == 0.0  # did not stop
    assert task.gold(Response(NODES[start], NODES[middle], True)) == 0.0  # did not arrive
    assert task.gold(Response(NODES[start], NODES[0], True)) == 0.0  # there is no such edge
    assert task.gold(Response(NODES[start], "?" + walk, True)) == 0.0
    assert task.gold(Response(NODES[start], walk * 5, True)) == 0.0  # longer than is allowed
    rng = np.random.default_rng(0)
    walks = [task.walk(rng) for _ in range(300)]
    golds = [task.gold(Response(walk[0], walk[1:], True)) for walk in walks]
    expected = [(LONGEST_WALK - len(w)) / (LONGEST_WALK - task.shortest[NODES.index(w[0])]) for w in walks]
    assert golds == pytest.approx([e if walk[-1] == "a" else 0.0 for e, walk in zip(expected, walks, strict=True)])


@pytest.mark.parametrize(
    ("source", "good"),
    [
        ("def f(x):\n    return x\n", True),
        ("def f(x):\n", False),
        ("def f(x):\n    # nothing\n", False),
        ("def f(x):\n    return (x\n", False),
        ("def f(x):\nreturn x\n", False),
        ("def f(x):\n    return '\\0'\0\n", False),
    ],
)
def test_gold_of_code(source, good):
    assert parses(source) == good


def test_distinct_n():
    assert distinct([[1, 2, 1, 2], [3]], 1) == 3 / 5
    assert distinct([[1, 2, 1, 2], [3]], 2) == 2 / 3
    assert distinct([[1]], 2) == 0.0


def test_a_grade_is_sure_of_responses_or_of_seeds():
    """The interval is over the responses of one seed, or the means of several seeds.

    If the means of two seeds are equal, it is 0.
    """
    gold = np.array([0.0, 1.0] * 50)
    verdict = Verdict("x", gold, gold, gold, 0.0, 1.0, 1.0, 1.0, 1.0, [])
    assert grade([verdict]).gold_interval == half_width(gold) > 0
    assert grade([verdict, verdict]).gold_interval == 0.0
