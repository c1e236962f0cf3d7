"""The interface of models that are trained: one network, or several."""

from typing import Any, Protocol, TypeVar

import numpy as np

from npllm.model.config import ModelConfig
from npllm.model.parameters import Parameters
from npllm.model.transformer import GPT


class Trainable(Protocol):
    """What the optimiser, the training loop and a checkpoint use of a model.

    `GPT` and `ActorCritic` are such models. config: that of the network that writes
    text. params, grads: those of all networks, each in one flat buffer. frozen: the
    weights below LoRA's factors, or None.
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
        """Return the networks by name; the first is the one that writes text.

        `name_in_model` gives the name in `params` of a parameter of a part.
        """


Model = TypeVar("Model", bound=Trainable)  # the kind of model that a function is for
