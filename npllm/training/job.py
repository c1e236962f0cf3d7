"""What the loop is given to train a run."""

from collections.abc import Sequence
from dataclasses import dataclass

from npllm.model import GPT
from npllm.training.loop import Gradients
from npllm.training.memory import Work
from npllm.training.recovery import Validate
from npllm.training.state import LoopState


@dataclass(kw_only=True)
class Job:
    """All that the loop needs to train a run.

    validate: None where there is no loss on held-out data. work, readers: what decides the
    memory; readers are models that stay beside the one that is trained. description: what
    is going to happen, in a line. tokens_per_byte: of the text, to show bits per byte; None
    = show the figures of a batch that `shown` names instead.
    """

    state: LoopState
    gradients: Gradients
    validate: Validate | None
    work: Work
    readers: Sequence[GPT] = ()
    description: str = ""
    tokens_per_byte: float | None = None
    shown: tuple[str, ...] = ()
