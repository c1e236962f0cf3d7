"""Look into a model: every tensor of a pass over some text, and its gradient, by name.

    inside = npllm.inspect(model, tokens)
    inside.streams                                    # (L+1, B, T, C)
    inside.attention                                  # (L, B, H, T, T)
    inside.outputs["blocks.0.mlp.up"]                 # (B, T, F)
    inside.gradients["blocks.0.mlp.up"]               # d loss / d that array
    inside.gradients["blocks.0.mlp.up.weight"]        # d loss / d that parameter

The pass is made by the operations of `npllm.reference` with a copy of the weights in
float64. So it holds every tensor as the book defines it, whatever the dtype and the
backend of the model are, and leaves the model as it was.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from npllm.model.checked_ids import checked_batch, checked_tokens, count_targets
from npllm.model.parameters import Parameters, weight_shapes
from npllm.model.recording import Operation, Tape, operations_of_calls
from npllm.model.transformer import GPT, Storage
from npllm.reference.lm_head_loss import IGNORED


@dataclass(frozen=True)
class Inspection:
    """The inside of a model on (B, T) tokens. All arrays are float64.

    tokens, targets: (B, T) int32; a target of -1 takes no part. loss: mean of the
    targets' losses, in nats. losses: (B, T), of each position's target, 0 where there
    is none. logits: (B, T, V).

    operations: what each operation was given and returned, forward and backward, by the
    operation's name, in the order of the forward: "embedding",
    "blocks.0.norm_1", "blocks.0.attention.qkv", "blocks.0.attention.qk_norm",
    "blocks.0.attention.rotary", "blocks.0.attention", "blocks.0.attention.out",
    "blocks.0.norm_2", "blocks.0.mlp.up", "blocks.0.mlp.gate", "blocks.0.mlp.swiglu" or
    "blocks.0.mlp.relu2", "blocks.0.mlp.down", "blocks.1.norm_1" ..., "final_norm",
    "loss". Those that the architecture lacks are missing.

    outputs: the result of each operation, by its name, (B, T, width). That of `up` is
    after GELU, where GELU is the activation. That of `down` is the residual stream
    after the block, and "blocks.0.mid" is the stream between the two branches. Values
    of q, k and v lie side by side: (B, T, (H+2K)·D). That of "loss" is `losses`.

    gradients: the derivative of `loss` by each output and each parameter, by name, of
    its shape. Empty without a backward.
    """

    tokens: np.ndarray
    targets: np.ndarray
    loss: float
    losses: np.ndarray
    logits: np.ndarray
    operations: dict[str, Operation]
    outputs: dict[str, np.ndarray]
    gradients: dict[str, np.ndarray]

    @property
    def stream_names(self) -> list[str]:
        """The outputs that are the residual stream: the embedding, then each block."""
        return ["embedding", *(name for name in self.operations if name.endswith("mlp.down"))]

    @property
    def streams(self) -> np.ndarray:
        """The residual stream, (L+1, B, T, C): embedded, then after each block."""
        return np.stack([self.outputs[name] for name in self.stream_names])

    @property
    def stream_gradients(self) -> np.ndarray:
        """The derivative of `loss` by `streams`, (L+1, B, T, C)."""
        return np.stack([self.gradients[name] for name in self.stream_names])

    @property
    def attention(self) -> np.ndarray:
        """The attention weights, (L, B, H, T, T): how much of each earlier position
        (last axis) goes into a position. Each row sums to 1."""
        B, T = self.tokens.shape
        caches = [each.forward.results[1] for name, each in self.operations.items() if name.endswith(".attention")]
        return np.stack([cache.probabilities.reshape(B, -1, T, T) for cache in caches])


def inspect(model: GPT, tokens, targets=None, *, backward: bool = True) -> Inspection:
    """Run a pass over tokens without dropout, and return all that was computed.

    tokens: (B, T) integers below V. targets: (B, T), -1 = ignored; None = the token
    that follows in the row, and none for the last. backward: False = no gradients, in a
    third of the time.

    All tensors are kept, so a pass takes memory: the logits alone are 8·B·T·V bytes.
    Raises DataError for tokens or targets that the model cannot take, and where there
    is no target.
    """
    twin = float64_copy(model)
    tokens = checked_tokens(tokens, twin.config)
    tokens, targets = checked_batch(tokens, next_tokens(tokens) if targets is None else targets, twin.config)
    n_targets = count_targets(targets)
    twin.ops = tape = Tape(twin.ops)
    trace = twin.trace(tokens)
    nll, cache = tape.lm_head_loss_forward(trace.hidden, twin.views.head, targets.reshape(-1))
    if backward:
        dnll = np.where(targets.reshape(-1) == IGNORED, 0.0, 1.0 / n_targets)
        dhidden = tape.lm_head_loss_backward(dnll, cache, twin.views.head, twin.dviews.head)
        twin.backward(trace, dhidden)
    operations = operations_of_calls(tape.calls, twin.views)
    shape = tokens.shape
    return Inspection(
        tokens,
        targets,
        float(nll.sum()) / n_targets,
        nll.reshape(shape),
        (trace.hidden @ twin.views.head.T).reshape(*shape, -1),
        operations,
        {name: _by_position(array, shape) for name, array in _outputs(operations)},
        {name: _by_position(array, shape) for name, array in _gradients(operations)} | dict(twin.grads)
        if backward
        else {},
    )


def float64_copy(model: GPT) -> GPT:
    """Return a model of the reference operations with these weights in float64.

    Without dropout, without a second head, and with LoRA's factors merged in.
    """
    config = replace(model.config.language_model, dropout=0.0)
    params = Parameters(weight_shapes(config), "float64")
    with model.turn:
        merged = model.merged()
        for name, array in params.items():
            array[...] = merged[name]
    return GPT(config, dtype="float64", backend="reference", storage=Storage(params))


def next_tokens(tokens: np.ndarray) -> np.ndarray:
    """Return the token that follows each of the tokens, (B, T), and -1 for the last."""
    targets = np.full_like(tokens, IGNORED)
    targets[:, :-1] = tokens[:, 1:]
    return targets


def _outputs(operations: dict[str, Operation]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield name and value of each result of an operation."""
    for name, operation in operations.items():
        results = operation.forward.results
        if operation.forward.kind == "add_norm":
            yield _mid(name), results[0]
            yield name, results[1]
        else:
            yield name, results[0]


def _gradients(operations: dict[str, Operation]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield name and gradient of each result of an operation: what its backward got.

    The stream between the branches forks, so its gradient is what the backward of the
    second norm returns: the sum of both ways.
    """
    for name, operation in operations.items():
        backward = operation.backward
        if operation.forward.kind == "add_norm":
            yield _mid(name), backward.results[0]
        yield name, backward.arguments["dnll" if name == "loss" else "dy"]


def _mid(norm_2: str) -> str:
    return norm_2.removesuffix("norm_2") + "mid"


def _by_position(array: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return rows, (N, ...), or what has the positions already, as (B, T, ...)."""
    return array.reshape(shape if array.ndim == 1 else (*shape, -1))
