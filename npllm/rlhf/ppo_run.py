"""`npllm ppo`: a run folder for PPO, RLOO or GRPO, from a policy, a reward model and prompts."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal

from rich.console import Console
from tyro.conf import Positional

from npllm.data.fitting import Room
from npllm.data.prompt_format import PromptFormat
from npllm.data.records import Prompt, PromptText, prompt, read_prompts, scan
from npllm.errors import ConfigError
from npllm.finetuning.chosen_records import fitting_records
from npllm.finetuning.stage_run import StageConfig, micro_batch, new_state
from npllm.generation.sampling import sampling_bytes
from npllm.model import GPT
from npllm.optim import BatchConfig, OptimConfig
from npllm.rlhf.actors import build_actors, check_dtype
from npllm.rlhf.divergence import comparison_bytes
from npllm.rlhf.ppo import Gold, PPOGradients, Scorers
from npllm.rlhf.ppo_settings import PPOSettings
from npllm.rlhf.sequences import rows_in_part
from npllm.runs.inputs import (
    Copies,
    block_size_of,
    check_same_tokenizer,
    checked_records,
    load_model,
    policy_checkpoint,
    trained_checkpoint,
)
from npllm.runs.run_folder import RunFolder
from npllm.runs.summary import write_summary
from npllm.training.config import TrainConfig
from npllm.training.job import Job
from npllm.training.memory import Work
from npllm.training.spikes import SpikeConfig
from npllm.training.stage import Stage


@dataclass(frozen=True, kw_only=True)
class PPOConfig(StageConfig):
    """A complete reinforcement learning run. batch.size counts responses in a minibatch."""

    ppo: PPOSettings = field(default_factory=PPOSettings)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(
            name="adam", lr=2e-4, min_lr=0.0, warmup_steps=0, decay="linear", beta2=0.999, eps=1e-5, weight_decay=0.0
        )
    )
    batch: BatchConfig = field(default_factory=lambda: BatchConfig(size=32, micro_size=32))
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=400))
    # The loss of a policy neither falls nor stays, so there is nothing that a spike could be seen against.
    spikes: SpikeConfig = field(default_factory=lambda: SpikeConfig(enabled=False))


def prompts_of(prompts: Path, settings: PPOSettings, base: Path, console: Console) -> list[PromptText]:
    """Those of a jsonl file that leave the model of the run `base` room for a response."""
    checkpoint, tokenizer = trained_checkpoint(base)
    T, longest = block_size_of(checkpoint), settings.max_tokens
    if longest >= T:
        raise ConfigError(f"ppo.max_tokens is {longest}, but must be below model.block_size = {T}; lower it.")
    room = Room(T - longest, "model.block_size - ppo.max_tokens", "lower ppo.max_tokens")
    return fitting_records(scan(prompts, prompt), settings.on_bad, "ppo", tokenizer, room, console)


def ppo_inputs(config: PPOConfig, base: Path, reward: Path, prompts: Sequence[PromptText]) -> Copies:
    """Policy, reward model and prompts."""
    if config.train.steps is None:
        raise ConfigError("train.steps is none, but PPO has no epochs to count; set train.steps.")
    check_same_tokenizer(base, reward)
    policy_file, tokenizer, _ = policy_checkpoint(base)
    reward_file, _ = trained_checkpoint(reward)
    models, records = {"policy": policy_file, "reward": reward_file}, {"prompts": [Prompt(text) for text in prompts]}
    return Copies(config, tokenizer, models, records)


@dataclass(frozen=True)
class PPO(Stage[PPOConfig]):
    """PPO, RLOO or GRPO. gold: a true score, to be logged, where there is one."""

    gold: Gold | None = None
    name: ClassVar[str] = "ppo"
    config_type: ClassVar[type[PPOConfig]] = PPOConfig
    models: ClassVar[tuple[str, ...]] = ("policy", "reward")
    records: ClassVar[tuple[str, ...]] = ("prompts",)

    def folder_name(self, config: PPOConfig, *, method: str | None = None, **_) -> str:
        """Of the method."""
        return method or config.ppo.method

    def inputs(
        self,
        config: PPOConfig,
        console: Console,
        run: Positional[Path],
        *,
        reward: Path,
        prompts: Path,
        method: Literal["ppo", "rloo", "grpo"] | None = None,
    ) -> Copies:
        """Policy, reward model and prompts.

        Args:
            run: folder of the run to begin with (npllm sft), or a checkpoint in it
            reward: folder of a run of npllm reward
            prompts: jsonl with prompt (a text, or messages)
            method: short for ppo.method
        """
        if method is not None:
            config = replace(config, ppo=replace(config.ppo, method=method))
        return ppo_inputs(config, run, reward, prompts_of(prompts, config.ppo, run, console))

    def job(self, run: RunFolder, config: PPOConfig) -> Job:
        """The networks, and a buffer for a rollout, which is part of the state."""
        asked = PromptFormat(run.load_tokenizer())
        policy, reward = load_model(run, "policy"), load_model(run, "reward")
        actors = build_actors(policy, reward, config.adapt, method=config.ppo.method, seed=config.train.seed)
        check_dtype(actors, config.train.dtype)
        gradients = PPOGradients(
            config.ppo,
            [asked.encode(prompt) for prompt in read_prompts(checked_records(run, "prompts"))],
            Scorers(actors.reference, actors.reward, self.gold),
            stop_id=asked.stop_id(),
            minibatch=config.batch.size,
            micro_size=config.batch.micro_size,
            seed=config.train.seed,
            block_size=actors.model.config.block_size,
        )
        state = new_state(actors.model, config, gradients.buffer.arrays())
        state.check_extra = gradients.check_rollout
        return Job(
            state=state,
            gradients=gradients,
            validate=None,
            work=work_of(gradients, config, actors.reference),
            readers=[actors.reference, actors.reward],
            description=f"{config.train.steps:,} updates of {config.batch.size} responses, {config.ppo.method}",
            shown=("objective/score", "objective/kl", "policy/entropy"),
        )

    def report(self, run: RunFolder, config: PPOConfig, job: Job, console: Console) -> None:
        """The figures of the rollouts are in metrics.jsonl."""
        write_summary(run, job.state, {})
        console.print(f"Next: npllm generate {run.path}", markup=False, highlight=False, soft_wrap=True)


def work_of(gradients: PPOGradients, config: PPOConfig, reference: GPT) -> Work:
    """A rollout is written and judged, and then learnt from in micro-batches."""
    (responses, width), V = gradients.buffer.tokens.shape, reference.config.vocab_size
    read_rows = min(responses, rows_in_part(width))
    compared = comparison_bytes(V, read_rows * config.ppo.max_tokens, reference.dtype.itemsize)
    return Work(
        rows=micro_batch(config),
        width=width,
        read_rows=read_rows,
        policy=True,
        copies=2,  # the hidden rows over the temperature, and their gradient
        temporaries=max(sampling_bytes(responses, V), compared),
        written=(responses, max(map(len, gradients.prompts))),
    )


STAGE = PPO()
