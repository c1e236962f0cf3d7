"""`npllm ppo`: a run of PPO, RLOO or GRPO.

It starts from a policy, a reward model and prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import ceil, lcm
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
from npllm.output import shell_word
from npllm.rlhf.actors import build_actors, check_dtype
from npllm.rlhf.divergence import comparison_bytes
from npllm.rlhf.ppo import Gold, PPOGradients, Scorers
from npllm.rlhf.ppo_settings import USUAL_GROUP, PPOSettings, nearest_divisor
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

USUAL_BATCH = 32  # responses, as in lm-human-preferences
USUAL_BATCHES = 4  # in a rollout


@dataclass(frozen=True, kw_only=True)
class PPOConfig(StageConfig):
    """All settings of a PPO, RLOO or GRPO run. batch.size counts responses."""

    fits_batch = True
    ppo: PPOSettings = field(default_factory=PPOSettings)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(
            name="adam", lr=2e-4, min_lr=0.0, warmup_steps=0, decay="linear", beta2=0.999, eps=1e-5, weight_decay=0.0
        )
    )
    batch: BatchConfig = field(default_factory=lambda: BatchConfig(size=None, micro_size=32))
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=400))
    # The policy loss has no trend and no steady level, so a spike would not stand out.
    spikes: SpikeConfig = field(default_factory=lambda: SpikeConfig(enabled=False))


def with_sizes(config: PPOConfig) -> PPOConfig:
    """Return the config with batch.size, ppo.rollout_size and ppo.group set.

    What the user has set stays, and the others are chosen to fit it: the batch divides
    the rollout, and with RLOO and GRPO the group does too.
    """
    rollout, group, size = config.ppo.rollout_size, config.ppo.group, config.batch.size
    if rollout is None:
        size = size or USUAL_BATCH
        unit = size if config.ppo.method == "ppo" else lcm(size, group or USUAL_GROUP)
        rollout = ceil(USUAL_BATCHES * size / unit) * unit
    size = size or nearest_divisor(rollout, USUAL_BATCH)
    group = group or nearest_divisor(rollout, USUAL_GROUP, least=2)
    settings = replace(config.ppo, rollout_size=rollout, group=group)
    return replace(config, ppo=settings, batch=replace(config.batch, size=size))


def prompts_of(prompts: Path, settings: PPOSettings, base: Path, console: Console) -> list[PromptText]:
    """Return the prompts of a file that leave room for a response.

    The room is the context of the policy in the run `base`. settings.on_bad says what
    happens to the other prompts. Raises ConfigError if a response alone does not fit.
    """
    checkpoint, tokenizer = trained_checkpoint(base)
    T, longest = block_size_of(checkpoint), settings.max_tokens
    if longest >= T:
        raise ConfigError(f"ppo.max_tokens is {longest}; set it below model.block_size = {T}.")
    room = Room(T - longest, "model.block_size - ppo.max_tokens", "lower ppo.max_tokens")
    return fitting_records(scan(prompts, prompt), settings.on_bad, "ppo", tokenizer, room, console)


def ppo_inputs(config: PPOConfig, base: Path, reward: Path, prompts: Sequence[PromptText]) -> Copies:
    """Return what the run copies: config, policy, reward model and prompts.

    Raises ConfigError if train.steps is none, and DataError if policy and reward model
    have different tokenizers.
    """
    if config.train.steps is None:
        raise ConfigError("train.steps is none, and PPO has no epochs that could replace it; set train.steps.")
    check_same_tokenizer(base, reward)
    policy_file, tokenizer, _ = policy_checkpoint(base)
    reward_file, _ = trained_checkpoint(reward)
    models, records = {"policy": policy_file, "reward": reward_file}, {"prompts": [Prompt(text) for text in prompts]}
    return Copies(with_sizes(config), tokenizer, models, records)


@dataclass(frozen=True)
class PPO(Stage[PPOConfig]):
    """The stage of `npllm ppo`. gold: computes the true scores to log, or None."""

    gold: Gold | None = None
    name: ClassVar[str] = "ppo"
    config_type: ClassVar[type[PPOConfig]] = PPOConfig
    models: ClassVar[tuple[str, ...]] = ("policy", "reward")
    records: ClassVar[tuple[str, ...]] = ("prompts",)
    first_options: ClassVar[tuple[str, ...]] = (
        "ppo.rollout_size",
        "ppo.max_tokens",
        "ppo.kl_coef",
        "ppo.kl_target",
        "optim.lr",
        "batch.size",
        "train.steps",
    )

    def folder_name(self, config: PPOConfig, *, method: str | None = None, **_) -> str:
        """Return the method: the folder of a run is named after it."""
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
        """Return the policy, the reward model and the prompts.

        Args:
            run: folder of the run to start from (npllm sft), or a checkpoint in it
            reward: folder of a run of npllm reward
            prompts: jsonl, csv or tsv with prompt (in jsonl perhaps messages)
            method: short for ppo.method
        """
        if method is not None:
            config = replace(config, ppo=replace(config.ppo, method=method))
        return ppo_inputs(config, run, reward, prompts_of(prompts, config.ppo, run, console))

    def job(self, run: RunFolder, config: PPOConfig) -> Job:
        """Return the training job. The rollout buffer is part of its saved state."""
        config = with_sizes(config)  # for a config.toml that leaves one of them out
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

    def report(self, run: RunFolder, config: PPOConfig, job: Job, console: Console) -> str:
        """Write the summary. The figures of the rollouts are in metrics.jsonl."""
        write_summary(run, job.state, {})
        return f"npllm generate {shell_word(run.path)}"


def work_of(gradients: PPOGradients, config: PPOConfig, reference: GPT) -> Work:
    """Return the sizes of the passes of a run, from which its memory is computed.

    The passes write a rollout, judge it, and then learn from it in micro-batches.
    """
    (responses, width), V = gradients.buffer.tokens.shape, reference.config.vocab_size
    read_rows = min(responses, rows_in_part(width))
    compared = comparison_bytes(V, read_rows * config.ppo.max_tokens, reference.dtype.itemsize)
    return Work(
        rows=micro_batch(config),
        width=width,
        read_rows=read_rows,
        policy=True,
        copies=2,  # the hidden rows divided by the temperature, and their gradient
        temporaries=max(sampling_bytes(responses, V), compared),
        written=(responses, max(map(len, gradients.prompts))),
    )


STAGE = PPO()
