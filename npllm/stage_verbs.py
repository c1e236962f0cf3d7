"""The verbs of the stages after pretraining; `cli.py` imports them when one is asked for."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from tyro.conf import Positional

from npllm.errors import ConfigError, DataError, ResourceError
from npllm.finetuning.adaptation import AdaptConfig
from npllm.finetuning.classify_config import ClassifyConfig, ClassifySettings
from npllm.finetuning.sft import SFTConfig, SFTSettings
from npllm.optim import BatchConfig, OptimConfig
from npllm.rlhf.dpo import DPOConfig, DPOSettings
from npllm.rlhf.ppo_run import PPOConfig
from npllm.rlhf.ppo_settings import PPOSettings
from npllm.rlhf.reward import RewardConfig, RewardSettings
from npllm.runs.new_run import claim_run, discard_untrained
from npllm.runs.run_folder import RunFolder
from npllm.training.config import TrainConfig
from npllm.training.spikes import SpikeConfig

CLASSIFY, SFT, REWARD, PPO, DPO = ClassifyConfig(), SFTConfig(), RewardConfig(), PPOConfig(), DPOConfig()  # defaults


def classify(
    run: Positional[Path],
    *,
    data: str = "stdlib-topics",
    test: Path | None = None,
    compare_scratch: bool = False,
    out: Path | None = None,
    classify: ClassifySettings = CLASSIFY.classify,
    adapt: AdaptConfig = CLASSIFY.adapt,
    optim: OptimConfig = CLASSIFY.optim,
    batch: BatchConfig = CLASSIFY.batch,
    train: TrainConfig = CLASSIFY.train,
    spikes: SpikeConfig = CLASSIFY.spikes,
) -> None:
    """Teach a pretrained model to classify texts; show what pretraining was worth.

    Args:
        run: folder of the run to begin with, or a checkpoint in it
        data: csv, tsv or jsonl with text and label, or lines of a label and a text; or stdlib-topics
        test: texts to test on; none = a share of the data
        compare_scratch: short for classify.compare_scratch
        out: folder of the new run; none = runs/classify
    """
    from npllm.finetuning.classify import classify as run_classify

    if compare_scratch:
        classify = replace(classify, compare_scratch=True)
    config = ClassifyConfig(classify=classify, adapt=adapt, optim=optim, batch=batch, train=train, spikes=spikes)
    with _new_run(out, "classify") as path:
        run_classify(config, run, data, test, path, Console())


def sft(
    run: Positional[Path],
    *,
    data: str = "stdlib-docstrings",
    out: Path | None = None,
    sft: SFTSettings = SFT.sft,
    adapt: AdaptConfig = SFT.adapt,
    optim: OptimConfig = SFT.optim,
    batch: BatchConfig = SFT.batch,
    train: TrainConfig = SFT.train,
    spikes: SpikeConfig = SFT.spikes,
) -> None:
    """Teach a pretrained model to answer, from demonstrations.

    Args:
        run: folder of the run to begin with, or a checkpoint in it
        data: jsonl with prompt and response (or instruction, input and output), or with messages; or stdlib-docstrings
        out: folder of the new run; none = runs/sft
    """
    from npllm.finetuning.sft import sft as run_sft

    config = SFTConfig(sft=sft, adapt=adapt, optim=optim, batch=batch, train=train, spikes=spikes)
    with _new_run(out, "sft") as path:
        run_sft(config, run, data, path, Console())


def chat(
    run: Positional[Path], *, max_tokens: int = 256, temperature: float = 0.8, top_p: float = 0.95, seed: int = 0
) -> None:
    """Talk with a model that npllm sft made; an empty line or Ctrl-D ends it.

    Args:
        run: folder of the run, or a checkpoint in it
        max_tokens: longest answer, in tokens; past the model's window it forgets the oldest of the conversation
        temperature: 0 = always the likeliest token, 1 = as the model says
        top_p: choose among the fewest likeliest tokens that together reach this probability
        seed: same seed and same questions, same answers
    """
    from npllm.finetuning.chat import chat as run_chat

    run_chat(run, max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)


def reward(
    run: Positional[Path],
    *,
    data: Path,
    out: Path | None = None,
    reward: RewardSettings = REWARD.reward,
    adapt: AdaptConfig = REWARD.adapt,
    optim: OptimConfig = REWARD.optim,
    batch: BatchConfig = REWARD.batch,
    train: TrainConfig = REWARD.train,
    spikes: SpikeConfig = REWARD.spikes,
) -> None:
    """Train a reward model on preferences.

    Args:
        run: folder of the run to begin with (npllm sft), or a checkpoint in it
        data: jsonl, or a list in a .json file, with prompt (a text, or messages), chosen and rejected
        out: folder of the new run; none = runs/reward
    """
    from npllm.rlhf.reward import reward as run_reward

    config = RewardConfig(reward=reward, adapt=adapt, optim=optim, batch=batch, train=train, spikes=spikes)
    with _new_run(out, "reward") as path:
        run_reward(config, run, data, path, Console())


def ppo(
    run: Positional[Path],
    *,
    reward: Path,
    prompts: Path,
    method: Literal["ppo", "rloo", "grpo"] | None = None,
    out: Path | None = None,
    ppo: PPOSettings = PPO.ppo,
    adapt: AdaptConfig = PPO.adapt,
    optim: OptimConfig = PPO.optim,
    batch: BatchConfig = PPO.batch,
    train: TrainConfig = PPO.train,
    spikes: SpikeConfig = PPO.spikes,
) -> None:
    """Improve a policy with a reward model: PPO, or RLOO or GRPO.

    Args:
        run: folder of the run to begin with (npllm sft), or a checkpoint in it
        reward: folder of a run of npllm reward
        prompts: jsonl with prompt (a text, or messages)
        method: short for ppo.method
        out: folder of the new run; none = runs/METHOD
    """
    from npllm.rlhf.ppo_run import ppo as run_ppo

    if method is not None:
        ppo = replace(ppo, method=method)
    config = PPOConfig(ppo=ppo, adapt=adapt, optim=optim, batch=batch, train=train, spikes=spikes)
    with _new_run(out, ppo.method) as path:
        run_ppo(config, run, reward, prompts, path, Console())


def dpo(
    run: Positional[Path],
    *,
    data: Path,
    out: Path | None = None,
    dpo: DPOSettings = DPO.dpo,
    adapt: AdaptConfig = DPO.adapt,
    optim: OptimConfig = DPO.optim,
    batch: BatchConfig = DPO.batch,
    train: TrainConfig = DPO.train,
    spikes: SpikeConfig = DPO.spikes,
) -> None:
    """Improve a policy from preferences alone, without a reward model.

    Args:
        run: folder of the run to begin with (npllm sft), or a checkpoint in it
        data: jsonl, or a list in a .json file, with prompt (a text, or messages), chosen and rejected
        out: folder of the new run; none = runs/dpo
    """
    from npllm.rlhf.dpo import dpo as run_dpo

    config = DPOConfig(dpo=dpo, adapt=adapt, optim=optim, batch=batch, train=train, spikes=spikes)
    with _new_run(out, "dpo") as path:
        run_dpo(config, run, data, path, Console())


def rlhf(*, task: str, out: Path | None = None, seeds: int = 1, overoptimise: bool = False) -> None:
    """The whole road on one task: pretrain, SFT, reward, PPO and its rivals, report card. Continues what it began.

    Args:
        task: paths (a few minutes), code (a quarter of an hour), or a Python file with a Task
        out: folder of the road; none = runs/rlhf-TASK
        seeds: how many times to walk it, each with a seed of its own; figures are then means over them
        overoptimise: also let policies fool reward models that learnt from few pairs; four times as long altogether
    """
    from npllm.rlhf.report_card import walk_and_report

    walk_and_report(task, out, seeds, Console(), overoptimise=overoptimise)


@contextmanager
def _new_run(out: Path | None, name: str) -> Iterator[Path]:
    """The place of a run to be made; see claim_run. A run that is refused when all its parts meet, before its first
    checkpoint, is gone again: what was wrong can be mended and the command repeated."""
    with claim_run(out, name) as path:
        try:
            yield path
        except (ConfigError, DataError, ResourceError):
            discard_untrained(path)
            raise


def resume_stage(run: RunFolder, stage: str, console: Console) -> None:
    """Go on with a run that one of these verbs made. Raises ConfigError for any other stage."""
    from npllm.finetuning.classify import resume_classify
    from npllm.finetuning.sft import resume_sft
    from npllm.rlhf.dpo import resume_dpo
    from npllm.rlhf.ppo_run import resume_ppo
    from npllm.rlhf.reward import resume_reward

    known: dict[str, Any] = {
        "classify": resume_classify,
        "sft": resume_sft,
        "reward": resume_reward,
        "ppo": resume_ppo,
        "dpo": resume_dpo,
    }
    if stage not in known:
        raise ConfigError(f"{run.config} says that the stage is {stage!r:.40}; restore the config.toml of the run.")
    known[stage](run, console)
