"""The whole pipeline in one command.

It pretrains a model, fine-tunes it, collects preferences, trains a reward model,
improves the policy with four methods, and judges all of them on the same prompts.

Every stage has a run folder of its own below the pipeline's folder. A finished stage is
not repeated and a stopped one goes on, so the command that started a pipeline also
continues it.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from npllm.data.records import Preference, read_preferences, write_records
from npllm.files.atomic import write_atomically
from npllm.finetuning.sft import SFT, sft_inputs
from npllm.rlhf.dpo import DPO, dpo_inputs
from npllm.rlhf.judging import Judge, Verdict, gold_of
from npllm.rlhf.ppo_run import PPO, PPOConfig, ppo_inputs
from npllm.rlhf.preferences import sample_preferences
from npllm.rlhf.reward import Reward, RewardConfig, reward_inputs
from npllm.rlhf.tasks import Task
from npllm.runs.metrics import read_metrics
from npllm.runs.run_folder import RunFolder, load
from npllm.training.config import LoopConfig
from npllm.training.pretrain import STAGE as PRETRAINING
from npllm.training.pretrain import RawText
from npllm.training.stage import Inputs, Stage, create_run, train_run

BEST_OF = 16
IMPROVED = ("ppo", "rloo", "grpo")  # the methods that learn from the reward model


class Pipeline:
    """The stages of one task with one seed, below the folder `path`.

    seed: the seed of every stage.
    """

    def __init__(self, task: Task, path: Path, seed: int, console: Console):
        self.task, self.path, self.seed, self.console = task, path, seed, console

    def run_folder(self, name: str) -> RunFolder:
        """The run folder of the stage `name`."""
        return RunFolder(self.path / name)

    def run(self) -> list[Verdict]:
        """Run every stage that is not finished yet; return a verdict on each method."""
        recipe = self.task.recipe
        self.stage("pretrain", PRETRAINING, self.raw_text)
        demonstrations = self.task.demonstrations
        self.stage("sft", SFT(), lambda: sft_inputs(self.seeded(recipe.sft), self.path / "pretrain", demonstrations()))
        self.learn_reward("reward", recipe.reward, self.preferences())
        for name in IMPROVED:
            self.improve(name, getattr(recipe, name), "reward")
        dpo_config = self.seeded(recipe.dpo)
        self.stage("dpo", DPO(), lambda: dpo_inputs(dpo_config, self.path / "sft", self.preferences()))
        return self.judge()

    def stage(self, name: str, stage: Stage, inputs: Callable[[], Inputs]) -> None:
        """Create the run of a stage if it is missing, and train it until it is
        finished."""
        run = self.run_folder(name)
        if run.summary.exists():
            return
        self.console.rule(name)
        if not run.config.exists():
            create_run(stage, inputs(), run.path, self.console)
        train_run(run, self.console, stage)

    def seeded(self, config: LoopConfig) -> Any:
        """The config of a stage, with the pipeline's seed."""
        return replace(config, train=replace(config.train, seed=self.seed))

    def raw_text(self) -> RawText:
        """The text to pretrain on: the task's own, or the source that its recipe
        names."""
        config, text = self.seeded(self.task.recipe.pretrain), self.task.corpus()
        if text is not None:
            self.path.mkdir(parents=True, exist_ok=True)
            source = self.path / "corpus.txt"
            write_atomically(source, text.encode("utf-8"))
            config = replace(config, data=replace(config.data, source=(str(source),)))
        return RawText(config)

    def preferences(self) -> list[Preference]:
        """Pairs of the fine-tuned model's responses, labelled by the gold reward.

        They are sampled once and then read from preferences.jsonl.
        """
        file, recipe = self.path / "preferences.jsonl", self.task.recipe
        if not file.exists():
            policy, tokenizer = load(self.path / "sft")
            with self.console.status("sampling responses and labelling preferences"):
                pairs = sample_preferences(
                    policy,
                    tokenizer,
                    self.task,
                    responses_per_prompt=recipe.responses_per_prompt,
                    max_tokens=recipe.ppo.ppo.max_tokens,
                    temperature=recipe.preference_temperature,
                    n_pairs=recipe.n_pairs,
                    seed=self.seed,
                )
            write_records(file, pairs)
        return read_preferences(file)

    def learn_reward(self, name: str, config: RewardConfig, preferences: Sequence[Preference]) -> None:
        """Train the reward model `name`, starting from the fine-tuned model."""
        self.stage(name, Reward(), lambda: reward_inputs(self.seeded(config), self.path / "sft", preferences))

    def improve(self, name: str, config: PPOConfig, reward: str) -> None:
        """Train the policy `name` with PPO, RLOO or GRPO.

        reward: the name of the stage of its reward model.
        """
        prompts = self.task.prompts()
        tokenizer = self.run_folder("sft").load_tokenizer()
        self.stage(
            name,
            PPO(gold_of(self.task, prompts, tokenizer)),
            lambda: ppo_inputs(self.seeded(config), self.path / "sft", self.path / reward, prompts),
        )

    def judge(self) -> list[Verdict]:
        """A verdict on each method, all on the same prompts.

        The fine-tuned model comes first: the win rates compare the others with it.
        """
        judge, reference = self.new_judge(), load(self.path / "sft")[0]
        verdicts = [judge.judge("sft", reference), judge.judge_best_of(BEST_OF, reference)]
        with self.console.status("judging"):
            verdicts += [judge.judge(name, load(self.path / name)[0]) for name in (*IMPROVED, "dpo")]
        return verdicts

    def new_judge(self) -> Judge:
        """A judge that scores with the pipeline's own reward model."""
        reference, tokenizer = load(self.path / "sft")
        reward, _ = load(self.path / "reward")
        settings = self.task.recipe.ppo.ppo
        return Judge(
            self.task,
            tokenizer,
            reference,
            reward,
            max_tokens=settings.max_tokens,
            missing_stop_score=settings.missing_stop_score,
            n=self.task.recipe.n_judged,
            console=self.console,
        )

    def rollouts(self, name: str) -> list[dict[str, Any]]:
        """The metrics of each rollout of a PPO, RLOO or GRPO run, in order."""
        return [record for record in read_metrics(self.run_folder(name).metrics) if "objective/exact_kl" in record]
