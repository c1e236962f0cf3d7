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
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from types import ModuleType, NoneType
from typing import TypeVar

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

T = TypeVar("T")

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
    checked = CheckedTask(task, path)
    checked.check()
    return checked


class CheckedTask(Task):
    """A user's task whose failures have a name, whenever they occur: each one becomes a
    DataError with file, line and function.

    An exception of the task's own code would otherwise end hours of training in a
    traceback, and a gold reward that is no number would spoil the figures.
    """

    def __init__(self, task: Task, path: Path):
        self.task, self.path = task, path

    @property
    def name(self) -> str:
        """The name of the task."""
        return self._checked("name", str, lambda: [getattr(self.task, "name", None)])[0]

    @property
    def recipe(self) -> Recipe:
        """The recipe of the task."""
        return self._checked("recipe", Recipe, lambda: [self.task.recipe])[0]

    def corpus(self) -> str | None:
        """Return what the task returns."""
        return self._checked("corpus()", (str, NoneType), lambda: [self.task.corpus()])[0]

    def demonstrations(self) -> Sequence[Demonstration]:
        """Return what the task returns, as a list that is not empty."""
        return self._checked("demonstrations()", Demonstration, self.task.demonstrations)

    def prompts(self) -> Sequence[str]:
        """Return what the task returns, as a list that is not empty."""
        return self._checked("prompts()", str, self.task.prompts)

    def judged_prompts(self) -> Sequence[str]:
        """Return what the task returns, as a list that is not empty."""
        return self._checked("judged_prompts()", str, self.task.judged_prompts)

    def gold(self, response: Response) -> float:
        """Return what the task returns, a finite number."""
        return self._checked("gold()", (float, int, np.number), lambda: [self.task.gold(response)])[0]

    def check(self) -> None:
        """Call each part of the task once: most mistakes show before the training."""
        _ = self.name, self.recipe, self.corpus(), self.prompts(), self.judged_prompts()
        record = self.demonstrations()[0]
        self.gold(Response(record.prompt, record.response, stopped=True))

    def _checked(self, part: str, kind: type | tuple[type, ...], values: Callable[[], Iterable[T]]) -> list[T]:
        """The values of a part of the task. Each must have its type and, if it is a
        number, be finite."""
        owner = f"{part} of {type(self.task).__name__}"
        with _failures_named(self.path):
            found = list(values())
            if not found:
                raise ValueError(f"{owner} gives nothing")
            for value in found:
                if not isinstance(value, kind) or (isinstance(value, float | np.floating) and not isfinite(value)):
                    raise TypeError(f"{owner} gives {value!r:.80}")
        return found


@contextmanager
def _failures_named(path: Path) -> Iterator[None]:
    """Turn every failure of a user's file into a DataError with line and function."""
    try:
        yield
    except NpllmError:
        raise
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame for frame in frames if frame.filename == str(path.absolute())]
        place = str(path)
        if isinstance(error, SyntaxError) and error.lineno:
            place += f", line {error.lineno}"
        elif lines:
            place += f", line {lines[-1].lineno}"
            place += "" if lines[-1].name == "<module>" else f", in {lines[-1].name}"
        reason = error.msg if isinstance(error, SyntaxError) else error
        raise DataError(f"{place}: {type(error).__name__}: {reason!s:.400}; correct the task.") from error


def _task_in(module: ModuleType, name: str) -> Task:
    classes = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Task) and value.__module__ == module.__name__
    ]
    if len(classes) != 1:
        raise ConfigError(f"--task {name} has {len(classes)} subclasses of Task; define exactly one in it.")
    return classes[0]()
