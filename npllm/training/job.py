"""The job of a run: what the training loop needs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from npllm.model import GPT
from npllm.training.loop import Gradients
from npllm.training.memory import Work
from npllm.training.recovery import Validate
from npllm.training.state import LoopState


@dataclass(kw_only=True)
class Job:
    """What the training loop needs to train a run.

    validate: the validation loss; None where there is none. work, readers: what the
    memory is computed from; readers are models that are used but not trained.
    description: one line that says what will be trained. tokens_per_byte: of the text,
    to show bits per byte; None = show the figures that `shown` names instead. sample:
    returns a prompt and what the model writes after it, for `runs/sample_log.py`; None
    = nothing is written.
    """

    state: LoopState
    gradients: Gradients
    validate: Validate | None
    work: Work
    readers: Sequence[GPT] = ()
    description: str = ""
    tokens_per_byte: float | None = None
    shown: tuple[str, ...] = ()
    sample: Callable[[GPT], tuple[str, str]] | None = None
