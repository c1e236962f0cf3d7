"""What is trained: one network, or several with one set of parameters."""

from typing import Any, Protocol, TypeVar

import numpy as np

from npllm.model.config import ModelConfig
from npllm.model.parameters import Parameters
from npllm.model.transformer import GPT


class Trainable(Protocol):
    """What the optimiser, the loop and a checkpoint use of a `GPT` or an `ActorCritic`.

    config: of the network that writes text. params, grads: of all networks, each in one
    flat buffer. frozen: the weights below LoRA's factors, if there are any.
    """

    config: ModelConfig
    seed: int
    dtype: np.dtype
    dtype_name: str
    ops: Any
    params: Parameters
    grads: Parameters
    frozen: Parameters | None

    def parts(self) -> dict[str, GPT]:
        """The networks, by name; the one that writes text is the first.

        `name_in_model` says what a parameter of a part is called in `params`.
        """


Model = TypeVar("Model", bound=Trainable)  # the kind of model that a function is for
