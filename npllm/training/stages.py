"""Every stage by its name: what the command line offers, and what `npllm resume` and `npllm
verify` know. A module is imported when its stage is asked for; its STAGE is the stage."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from npllm.errors import ConfigError, NpllmError
from npllm.runs.config_file import load_config, stage_of

if TYPE_CHECKING:  # `npllm --help` reads the table below and waits for no compiler
    from npllm.runs.run_folder import RunFolder
    from npllm.runs.verify import Check
    from npllm.training.stage import Stage


class Registered(NamedTuple):
    """Where a stage is, and its line in the list of verbs."""

    module: str
    summary: str


_TABLE = {
    "pretrain": (
        "training.pretrain",
        "Train a model from scratch; without options, on the Python standard library's source for about 3 minutes.",
    ),
    "classify": ("finetuning.classify", "Teach a pretrained model to classify texts; show what pretraining was worth."),
    "sft": ("finetuning.sft", "Teach a pretrained model to answer, from demonstrations."),
    "reward": ("rlhf.reward", "Train a reward model on preferences."),
    "ppo": ("rlhf.ppo_run", "Improve a policy with a reward model: PPO, or RLOO or GRPO."),
    "dpo": ("rlhf.dpo", "Improve a policy from preferences alone, without a reward model."),
}
STAGES = {name: Registered(f"npllm.{module}", summary) for name, (module, summary) in _TABLE.items()}


def load_stage(name: str) -> "Stage":
    """The stage of that name, which must be registered."""
    return import_module(STAGES[name].module).STAGE


def stage_in(config: Path) -> "Stage":
    """The stage of the run whose config.toml this is. Raises ConfigError when it names none."""
    name = stage_of(config)
    if name not in STAGES:
        raise ConfigError(f"{config} says that the stage is {name!r:.40}; restore the config.toml of the run.")
    return load_stage(name)


def input_checks(run: "RunFolder") -> "dict[Path, Check]":
    """How `npllm verify` checks config.toml and every file that a run started from."""
    try:
        stage = stage_in(run.config)
    except NpllmError:  # which checking the config says again; what else the run started from is not known
        return {run.config: stage_in}
    return {run.config: lambda path: load_config(path, stage.config_type), **stage.input_checks(run)}
