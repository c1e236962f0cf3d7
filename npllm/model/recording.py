"""A record of the operations that a model runs: what each was given and returned.

The model calls every operation through its table of operations, `GPT.ops`. A `Tape` is
such a table. It runs the operations of another one and records each call. So nothing
in the model has to know that it is watched.
"""

import re
from collections.abc import Sequence
from inspect import signature
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from npllm.model.views import Network

ALLOCATORS = ("empty", "empty_y")  # arguments that say where a result lies, not what it is
ADDED_TO = ("dweight", "dbias", "dq_weight", "dk_weight", "dtoken_embedding", "dposition_embedding")
# Field of `Block` -> the operation whose weight it is.
WITH_WEIGHT = {
    "norm_1": "norm_1",
    "qkv": "attention.qkv",
    "q_norm": "attention.qk_norm",
    "out": "attention.out",
    "norm_2": "norm_2",
    "up": "mlp.up",
    "gate": "mlp.gate",
    "down": "mlp.down",
}
WITHOUT_WEIGHT = {  # GELU is the epilogue of `up`
    "attention": "attention",
    "rotary": "attention.rotary",
    "gelu": "mlp.up",
    "relu2": "mlp.relu2",
    "swiglu": "mlp.swiglu",
}


class Call(NamedTuple):
    """One call of an operation.

    function: its name in `npllm.reference` and `npllm.kernels`. arguments: by name,
    without what the caller left out, allocators, and the gradients in `added`. results:
    all that was returned. added: "dweight", for example -> what a backward added to
    this gradient of a parameter.

    Gradients are copies, because the model overwrites them later. All else is what the
    model used: with the reference operations it stays as it was.
    """

    function: str
    arguments: dict[str, Any]
    results: tuple
    added: dict[str, np.ndarray]
    seconds: float

    @property
    def kind(self) -> str:
        """The operation without its direction, such as "linear": its file's name."""
        return re.sub("_(forward|backward|and_grad)$", "", self.function)

    @property
    def is_forward(self) -> bool:
        return self.function.endswith("_forward")


class Operation(NamedTuple):
    """All calls of one operation of the network in one pass.

    name: such as "blocks.0.attention.qkv", of which `.weight` and `.bias` are the
    parameters. forward, backward: the two calls; backward: None without a backward
    pass. again: forwards whose results the backward computes again, because that is
    cheaper than to keep them.
    """

    name: str
    forward: Call
    backward: Call | None
    again: tuple[Call, ...]


class Tape:
    """The operations of a table, each of which records its calls in `calls`."""

    def __init__(self, ops: Any):
        self.calls: list[Call] = []
        self.__all__ = ops.__all__
        for name in ops.__all__:
            operation = getattr(ops, name)
            setattr(self, name, operation if isinstance(operation, type) else self._recorded(name, operation))

    def _recorded(self, name, operation):
        names = signature(operation)
        is_forward = name.endswith("_forward")

        def called(*arguments, **options):
            given = {key: value for key, value in options.items() if key not in ALLOCATORS}
            bound = names.bind(*arguments, **given).arguments
            sums = {key: bound.pop(key) for key in ADDED_TO if bound.get(key) is not None}
            before = {key: array.copy() for key, array in sums.items()}
            kept = {key: _copied(value) if key.startswith("d") else value for key, value in bound.items()}
            start = perf_counter()
            returned = operation(*arguments, **options)
            seconds = perf_counter() - start
            results = returned if type(returned) is tuple else (returned,)
            results = results if is_forward else tuple(map(_copied, results))
            added = {key: array - before[key] for key, array in sums.items()}
            self.calls.append(Call(name, kept, results, added, seconds))
            return returned

        return called


def _copied(value):
    return value.copy() if isinstance(value, np.ndarray) else value


def operations_of_calls(calls: Sequence[Call], network: Network) -> dict[str, Operation]:
    """Return the operations of a recorded pass by name, in the order of the forward.

    calls: of one pass. network: the views that the pass used.
    """
    of_each: dict[str, list[Call]] = {}
    for name, call in zip(_names(calls, network), calls, strict=True):
        of_each.setdefault(name, []).append(call)
    return {
        name: Operation(name, first, rest[-1] if rest else None, tuple(rest[:-1]))
        for name, (first, *rest) in of_each.items()
    }


def _names(calls: Sequence[Call], network: Network) -> list[str]:
    """Return the name of the operation that each call belongs to.

    The weight of a call tells where in the network it is. A call without a weight is
    in the layer of the nearest one before it, and a forward that is computed again in
    that of the nearest one after it.
    """
    by_weight = _names_of_weights(network)
    names = [_name_by_arguments(call, by_weight) for call in calls]
    head = names.index("loss")
    found = []
    for i, (name, call) in enumerate(zip(names, calls, strict=True)):
        if name is None:
            nearest = names[i:] if i > head and call.is_forward else reversed(names[:i])
            block = next(filter(None, nearest)).split(".")[:2]
            name = ".".join([*block, WITHOUT_WEIGHT[call.kind]])
        found.append(name)
    return found


def _name_by_arguments(call: Call, by_weight: dict[int, str]) -> str | None:
    if call.kind == "embedding":
        return "embedding"
    if call.kind.startswith("lm_head"):
        return "loss"
    weight = call.arguments.get("weight", call.arguments.get("q_weight"))
    return by_weight.get(id(weight))


def _names_of_weights(network: Network) -> dict[int, str]:
    names = {id(network.final_norm.weight): "final_norm"}
    for layer, block in enumerate(network.blocks):
        for field, name in WITH_WEIGHT.items():
            part = getattr(block, field)
            weight = getattr(part, "weight", part)  # the weights of QK-norm are arrays themselves
            if weight is not None:
                names[id(weight)] = f"blocks.{layer}.{name}"
    return names
