"""The registry of stages, for the command line, `npllm resume` and `npllm verify`.

A stage is the object STAGE of its module, which is imported when the stage is needed.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from npllm.distributed import world
from npllm.errors import ConfigError, NpllmError
from npllm.runs.config_file import load_config, stage_of

if TYPE_CHECKING:  # `npllm --help` needs only the table below, not the slow imports
    from npllm.runs.run_folder import RunFolder
    from npllm.runs.verify import Check
    from npllm.training.stage import Stage


class Registered(NamedTuple):
    """module: of the stage. summary: its line in the list of verbs."""

    module: str
    summary: str


_TABLE = {
    "pretrain": (
        "training.pretrain",
        "Train a model from scratch; without options, on the Python standard library's source for about 3 minutes.",
    ),
    "classify": ("finetuning.classify", "Teach a pretrained model to classify texts; show what pretraining gained."),
    "sft": ("finetuning.sft", "Teach a pretrained model to answer, from demonstrations."),
    "reward": ("rlhf.reward", "Train a reward model on preferences."),
    "ppo": ("rlhf.ppo_run", "Improve a policy with a reward model: PPO, RLOO or GRPO."),
    "dpo": ("rlhf.dpo", "Improve a policy from preferences alone, without a reward model."),
}
STAGES = {name: Registered(f"npllm.{module}", summary) for name, (module, summary) in _TABLE.items()}


def load_stage(name: str) -> "Stage":
    """The stage of a name that is in STAGES."""
    return import_module(STAGES[name].module).STAGE


def stage_in(config: Path) -> "Stage":
    """The stage that a config.toml names. Raises ConfigError when there is no such
    stage."""
    name = stage_of(config)
    if name not in STAGES:
        raise ConfigError(f"{config} names the unknown stage {name!r:.40}; restore the config.toml of the run.")
    return load_stage(name)


def open_with_stage(path: Path) -> "tuple[RunFolder, Stage]":
    """The run at a path, and its stage. Every rank of a job opens it."""
    from npllm.runs.run_folder import open_run

    def opened() -> "tuple[RunFolder, Stage]":
        run = open_run(path)
        return run, stage_in(run.config)

    return world().agree(opened)


def input_checks(run: "RunFolder") -> "dict[Path, Check]":
    """config.toml and the input files of a run, and the check of each, for `npllm
    verify`."""
    try:
        stage = stage_in(run.config)
    except NpllmError:  # the check of config.toml raises it again; the other inputs are unknown
        return {run.config: stage_in}
    return {run.config: lambda path: load_config(path, stage.config_type), **stage.input_checks(run)}
