"""The tasks of `npllm rlhf`.

Two tasks are embedded, `paths` and `code`. A user's own task is a class in a Python
file:

    from npllm.data.records import Demonstration
    from npllm.rlhf.tasks import Task

    class Polite(Task):
        name = "polite"
        def prompts(self):
            return ["How are you?", ...]
        def demonstrations(self):
            return [Demonstration("How are you?", "Fine, thank you!"), ...]
        def gold(self, response):
            return float("thank" in response.text)

`npllm rlhf --task polite.py` runs it.
"""

import importlib
import importlib.util
import traceback
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import numpy as np

from npllm.data.records import Demonstration
from npllm.errors import ConfigError, DataError, NpllmError
from npllm.files.user_path import user_path
from npllm.finetuning.sft import SFTConfig
from npllm.rlhf.dpo import DPOConfig
from npllm.rlhf.ppo_run import PPOConfig
from npllm.rlhf.responses import Response
from npllm.rlhf.reward import RewardConfig
from npllm.training.config import RunConfig

EMBEDDED = {"paths": "npllm.rlhf.tasks.paths", "code": "npllm.rlhf.tasks.code"}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The configs of the stages of a task, and the sizes of its other steps."""

    pretrain: RunConfig = field(default_factory=RunConfig)
    sft: SFTConfig = field(default_factory=SFTConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    rloo: PPOConfig = field(default_factory=PPOConfig)
    grpo: PPOConfig = field(default_factory=PPOConfig)
    dpo: DPOConfig = field(default_factory=DPOConfig)
    responses_per_prompt: int = 8
    """responses that the fine-tuned model writes to each prompt, to form pairs from"""
    preference_temperature: float = 1.0
    """temperature at which it writes them; above 1 they are more varied, so the reward
    model also learns about responses that only an improved policy writes often"""
    n_pairs: int = 4000
    """greatest number of preferences"""
    n_judged: int = 512
    """number of responses that each method is judged on in the end"""


class Task(ABC):
    """A task: prompts, demonstrations and a gold reward.

    name: of the task. recipe: how its stages train.
    """

    name: str
    recipe = Recipe()

    def corpus(self) -> str | None:
        """Return the text to pretrain on; None = the source that the recipe names."""
        return None

    @abstractmethod
    def demonstrations(self) -> Sequence[Demonstration]:
        """Return the demonstrations that supervised fine-tuning learns from."""

    @abstractmethod
    def prompts(self) -> Sequence[str]:
        """Return the prompts for training: for the preferences and the rollouts."""

    def judged_prompts(self) -> Sequence[str]:
        """Return the prompts for the final judging; by default those for training."""
        return self.prompts()

    @abstractmethod
    def gold(self, response: Response) -> float:
        """Return how good a response really is, from 0 to 1.

        Preferences are labelled by it. The policy never sees it.
        """


def load_task(name: str) -> Task:
    """Return an embedded task, or the task in a Python file.

    name: of the embedded task, or the path of the file. Raises ConfigError if it is
    neither, or if the file does not define exactly one subclass of Task; DataError,
    with the line, if the file cannot be run, or if its task is not complete.
    """
    if name in EMBEDDED:
        return _task_in(importlib.import_module(EMBEDDED[name]), name)
    path = user_path(name)
    if path.suffix != ".py" or not path.is_file():
        known = ", ".join(EMBEDDED)
        raise ConfigError(f"--task {name} is neither a Python file nor one of {known}; name one, or a file NAME.py.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    with _failures_named(path):
        spec.loader.exec_module(module)
        task = _task_in(module, name)
        _check_task(task)
    return task


@contextmanager
def _failures_named(path: Path) -> Iterator[None]:
    """Turn every failure of a user's file into a DataError with the line."""
    try:
        yield
    except NpllmError:
        raise
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path.absolute())]
        number = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        place = f"{path}, line {number}" if number else str(path)
        reason = error.msg if isinstance(error, SyntaxError) else error
        raise DataError(f"{place}: {type(error).__name__}: {reason}; correct the task.") from error


def _check_task(task: Task) -> None:
    """Raise TypeError unless each part of a task has its type.

    A mistake would otherwise show after minutes of training.
    """
    prompts, demonstrations, text = task.prompts(), task.demonstrations(), task.corpus()
    gold = [task.gold(Response(record.prompt, record.response, stopped=True)) for record in demonstrations[:1]]
    for name, kind, values in (
        ("name", str, [getattr(task, "name", None)]),
        ("prompts()", str, prompts),
        ("demonstrations()", Demonstration, demonstrations),
        ("corpus()", str, [] if text is None else [text]),
        ("gold()", (float, int, np.number), gold),
    ):
        for value in values:
            if not isinstance(value, kind):
                raise TypeError(f"{name} of {type(task).__name__} gives {value!r:.80}")


def _task_in(module: ModuleType, name: str) -> Task:
    classes = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Task) and value.__module__ == module.__name__
    ]
    if len(classes) != 1:
        raise ConfigError(f"--task {name} has {len(classes)} subclasses of Task; define exactly one in it.")
    return classes[0]()
