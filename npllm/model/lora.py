r"""LoRA: a frozen weight plus a trained product of two thin matrices, in the blocks.

$$
W = W_0 + s A B
s = \alpha / r
$$

with the frozen $W_0$, (in, out), and the factors A, (in, r), and B, (r, out). W is
linear in each factor. With dW, the gradient of W that the backward of the whole matrix
gives,

$$
dA = s dW B^T
dB = s A^T dW
$$

The forward can be computed as $x W_0 + s (x A) B$ or as $x W$. The first form saves the
memory of W and dW. The second leaves every operation of the model as it is, and
generation as fast. This file uses the second form, and saves memory in another way: W
and dW lie in a workspace that models on the same $W_0$ share, because they take turns.
Policy, critic, reward model and reference then cost three times the weights
($W_0$, W and dW) plus their factors.

The rows of new tokens in the embedding and in the head are trained directly. No change
of the blocks could replace a trained row of the head: behind the final norm a hidden
state has a bounded length, so with a random row the logit of the new token is bounded,
and the token may never become likely.

Source: Hu et al., "LoRA: low-rank adaptation of large language models", 2021.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from npllm.model.config import ModelConfig
from npllm.model.parameters import Parameters, weight_shapes


class Workspace(NamedTuple):
    """The weights that a pass of a model multiplies with, and their gradients."""

    weights: Parameters
    dweights: Parameters


def new_workspace(config: ModelConfig, dtype) -> Workspace:
    """Return a workspace for models of this config on one set of frozen weights."""
    shapes = weight_shapes(config)
    return Workspace(Parameters(shapes, dtype), Parameters(shapes, dtype))


class LoRA:
    """The factors of one model; frozen weights and workspace may be shared."""

    def __init__(
        self,
        ops: Any,
        config: ModelConfig,
        params: Mapping[str, np.ndarray],
        grads: Mapping[str, np.ndarray],
        frozen: Parameters,
        workspace: Workspace,
    ):
        self.ops = ops
        self.scale = config.lora_alpha / config.lora_rank
        self.params, self.grads = params, grads
        self.frozen, self.workspace = frozen, workspace
        self.names = [name.removesuffix(".lora_a") for name in params if name.endswith(".lora_a")]
        self.tables = [name.removesuffix(".new_rows") for name in params if name.endswith(".new_rows")]

    def merge(self) -> None:
        """Fill the workspace with the weights of this model.

        It is $W = W_0 + s A B$ for every matrix that has factors. New tokens get their
        trained rows; all other weights are the frozen ones.
        """
        weights = self.workspace.weights
        weights.flat[:] = self.frozen.flat
        for name in self.names:
            a, b = self.params[f"{name}.lora_a"], self.params[f"{name}.lora_b"]
            product, _ = self.ops.linear_forward(self.scale * a, b)
            weights[name][...] += product
        for name in self.tables:
            new = self.params[f"{name}.new_rows"]
            weights[name][-len(new) :] = new

    def take_gradients(self) -> None:
        """Add dA, dB and the gradients of new tokens' rows to the model's gradients.

        Sets the gradients of the workspace to zero.
        """
        dweights = self.workspace.dweights
        for name in self.names:
            a, b = self.params[f"{name}.lora_a"], self.params[f"{name}.lora_b"]
            dproduct = self.scale * dweights[name]  # A B is a linear layer whose input is A
            da = self.ops.linear_backward(dproduct, a, b, self.grads[f"{name}.lora_b"])
            self.grads[f"{name}.lora_a"][...] += da
        for name in self.tables:
            dnew = self.grads[f"{name}.new_rows"]
            dnew += dweights[name][-len(dnew) :]
        dweights.flat[:] = 0.0
