"""What a task is. Two are embedded; another one is a class in a file of the user's:

from npllm.rlhf.tasks import Task

class Polite(Task):
    name = "polite"
    def prompts(self): return ["How are you?", ...]
    def demonstrations(self): return [Demonstration("How are you?", "Fine, thank you!"), ...]
    def gold(self, response): return float("thank" in response.text)

npllm rlhf --task polite.py
"""

import importlib
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from npllm.data.records import Demonstration
from npllm.errors import ConfigError
from npllm.finetuning.sft import SFTConfig
from npllm.rlhf.dpo import DPOConfig
from npllm.rlhf.ppo_run import PPOConfig
from npllm.rlhf.responses import Response
from npllm.rlhf.reward import RewardConfig
from npllm.training.config import RunConfig

EMBEDDED = {"paths": "npllm.rlhf.tasks.paths", "code": "npllm.rlhf.tasks.code"}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How long and with what each stage of a task trains."""

    pretrain: RunConfig = field(default_factory=RunConfig)
    sft: SFTConfig = field(default_factory=SFTConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    rloo: PPOConfig = field(default_factory=PPOConfig)
    grpo: PPOConfig = field(default_factory=PPOConfig)
    dpo: DPOConfig = field(default_factory=DPOConfig)
    responses_per_prompt: int = 8
    """that the fine-tuned model writes to each prompt, to make pairs from"""
    preference_temperature: float = 1.0
    """at which it writes them: above 1, the reward model also sees what an improved policy could try"""
    n_pairs: int = 4000
    """preferences, at most"""
    n_judged: int = 512
    """responses that each method is judged by in the end"""


class Task(ABC):
    """Prompts, demonstrations and a gold reward."""

    name: str
    recipe = Recipe()

    def corpus(self) -> str | None:
        """A text to pretrain on; None = what the recipe names."""
        return None

    @abstractmethod
    def demonstrations(self) -> Sequence[Demonstration]:
        """What supervised fine-tuning learns from."""

    @abstractmethod
    def prompts(self) -> Sequence[str]:
        """What the policy is asked in training: for preferences and in rollouts."""

    def judged_prompts(self) -> Sequence[str]:
        """What it is asked in the end."""
        return self.prompts()

    @abstractmethod
    def gold(self, response: Response) -> float:
        """How good a response really is, from 0 to 1. The policy never sees it; preferences are labelled by it."""


def load_task(name: str) -> Task:
    """An embedded task, or the one Task class in a Python file. Raises ConfigError where there is none."""
    if name in EMBEDDED:
        module = importlib.import_module(EMBEDDED[name])
    elif Path(name).is_file():
        spec = importlib.util.spec_from_file_location(Path(name).stem, name)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        raise ConfigError(f"--task {name} is neither a Python file nor one of {', '.join(EMBEDDED)}.")
    classes = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Task) and value.__module__ == module.__name__
    ]
    if len(classes) != 1:
        raise ConfigError(f"--task {name} has {len(classes)} subclasses of Task, but needs exactly one.")
    return classes[0]()
