"""The operations of a training step, each with what the microscope shows of it."""

import re
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

from npllm.model.recording import Operation
from npllm.pages.kernel_times import StepProfile, Timing, arrays_in
from npllm.pages.markup import to_html
from npllm.pages.pictures import heat_map, histogram
from npllm.pages.source import highlighted
from npllm.pages.training_step import Microscope

BACKWARD = re.compile(r"^\W*Backward\b")  # the line of a docstring at which its second half starts
FORMULAS, GRADIENT = re.compile(r"\$\$"), re.compile(r"\$\$\s+d")  # a block; one that starts with a gradient
WHY_KEPT = re.compile(r"Why\s+(cache|keep)|backward\s+needs|the\s+cache\b", re.IGNORECASE)
# Further files of a kernel than the one with the name of its operation.
ALSO = {
    "attention": ["attention_tiles"],
    "add_norm": ["norm_rows"],
    "rmsnorm": ["norm_rows"],
    "layernorm": ["norm_rows"],
    "lm_head_loss": ["logit_chunks"],
}


class TensorView(NamedTuple):
    """A tensor and its gradient, ready to show. error: as in `Microscope`."""

    name: str
    anchor: str
    shape: str
    bytes: int
    norm: float
    picture: Any
    gradient_norm: float
    gradient_picture: Any
    error: float | None


class Derivation(NamedTuple):
    """What an operation's file in the book says, in HTML, with the code of both."""

    kind: str
    forward: Any
    backward: Any
    equations: tuple[Any, Any]  # of forward and backward
    why_kept: Any
    forward_code: Any
    backward_code: Any
    kernels: list


class OperationView(NamedTuple):
    """is_first: of its kind. It shows the derivation, and later ones the equations."""

    name: str
    anchor: str
    forward: str
    backward: str
    again: list[str]
    kind: str
    is_first: bool
    derivation: Derivation
    inputs: list[tuple[str, str]]  # name and anchor of tensors
    outputs: list[TensorView]
    parameters: list[TensorView]
    kept: list
    bars: "Bars"


class Pace(NamedTuple):
    """How fast one call of a kernel is. share: of what the machine reaches."""

    direction: str
    seconds: float
    speed: str
    share: float


class Bars(NamedTuple):
    """Time, work and memory of all calls of an operation."""

    paces: list[Pace]
    seconds: float
    flops: float
    kept_bytes: int


def operation_views(seen: Microscope) -> list[OperationView]:
    """Return every operation of the network, in the order of the forward."""
    where = {_address(array): name for name, array in seen.inside.outputs.items()}
    views: list[OperationView] = []
    for operation in seen.inside.operations.values():
        is_first = all(view.kind != operation.forward.kind for view in views)
        known = {tensor.name for view in views for tensor in view.parameters}  # a tied table has two uses
        views.append(_operation_view(seen, operation, where, known, is_first=is_first))
    return views


def _operation_view(
    seen: Microscope, operation: Operation, where: dict[int, str], known: set[str], *, is_first: bool
) -> OperationView:
    name, inside = operation.name, seen.inside
    given = [where[address] for address in map(_address, arrays_in(operation.forward.arguments)) if address in where]
    made = [name.removesuffix("norm_2") + "mid", name] if name.endswith("norm_2") else [name]
    parameters = [key for key in inside.gradients if key not in inside.outputs and _belongs(key, operation, seen)]
    given += [key for key in parameters if key in known]
    return OperationView(
        name,
        anchor_of(name),
        operation.forward.function,
        operation.backward.function,
        [call.function for call in operation.again],
        operation.forward.kind,
        is_first,
        derivation_of(operation.forward.kind),
        [(each, tensor_anchor(each)) for each in dict.fromkeys(given)],
        [_output_view(seen, each) for each in made],
        [_parameter_view(seen, each) for each in parameters if each not in known],
        seen.profile.kept.get(name, []),
        _bars(seen.profile, name),
    )


def _belongs(key: str, operation: Operation, seen: Microscope) -> bool:
    """Whether a parameter is one of this operation. A tied table has two uses."""
    if operation.name == "embedding":
        return key.endswith("_embedding")
    if operation.name == "loss":
        return key == seen.subject.model.head_name
    if operation.name.endswith("qk_norm"):
        return key.startswith(operation.name.removesuffix("qk_norm")) and "_norm." in key
    return key.rpartition(".")[0] == operation.name


def _output_view(seen: Microscope, name: str) -> TensorView:
    array, gradient = seen.inside.outputs[name], seen.inside.gradients[name]
    rows, gradient_rows = (np.atleast_2d(each[0]) for each in (array, gradient))
    pictures = heat_map(rows, name), heat_map(gradient_rows, f"gradient of {name}")
    return _tensor_view(seen, name, array, gradient, pictures)


def _parameter_view(seen: Microscope, name: str) -> TensorView:
    merged, gradient = np.asarray(seen.weights[name], np.float64), seen.inside.gradients[name]
    pictures = histogram(merged, name), histogram(gradient, f"gradient of {name}")
    return _tensor_view(seen, name, merged, gradient, pictures)


def _tensor_view(seen: Microscope, name: str, array, gradient, pictures) -> TensorView:
    return TensorView(
        name,
        tensor_anchor(name),
        " × ".join(map(str, array.shape)),
        array.size * seen.subject.model.dtype.itemsize,
        float(np.linalg.norm(array)),
        pictures[0],
        float(np.linalg.norm(gradient)),
        pictures[1],
        seen.errors.get(name),
    )


def _bars(profile: StepProfile, name: str) -> Bars:
    forward = "forward and backward in one" if name == "loss" else "forward"
    directions = {forward: profile.forward, "backward": profile.backward, "again": profile.again}
    timings = {direction: part[name] for direction, part in directions.items() if name in part}
    return Bars(
        [
            Pace(direction, timing.seconds, _speed(timing), timing.share(profile.limits))
            for direction, timing in timings.items()
        ],
        sum(timing.seconds for timing in timings.values()),
        sum(timing.flops for timing in timings.values()),
        sum(array.bytes for array in profile.kept.get(name, [])),
    )


def _speed(timing: Timing) -> str:
    if timing.flops:
        return f"{timing.flops / timing.seconds / 1e9:.1f} GFLOP/s"
    return f"{timing.bytes / timing.seconds / 1e9:.1f} GB/s"


@cache
def derivation_of(kind: str) -> Derivation:
    """Return what the book says about a kind of operation, such as "linear"."""
    module = import_module(f"npllm.reference.{kind}")
    why = [part for part in paragraphs(module.__doc__) if WHY_KEPT.search(part)]
    forward, backward = halves([part for part in paragraphs(module.__doc__) if part not in why])
    kernels = [import_module(f"npllm.kernels.{file}") for file in (kind, *ALSO.get(kind, []))]
    return Derivation(
        kind,
        to_html("\n\n".join(forward)),
        to_html("\n\n".join(backward)),
        (_equation(forward), _equation(backward, GRADIENT)),
        to_html("\n\n".join(why)),
        highlighted(getattr(module, f"{kind}_forward")),
        highlighted(getattr(module, f"{kind}_backward")),
        [highlighted(kernel) for kernel in kernels],
    )


def halves(parts: list[str]) -> tuple[list[str], list[str]]:
    """Cut the paragraphs of a docstring where the derivation of the backward starts.

    That is the paragraph that starts with "Backward" or, without one, the sentence
    before the second block of formulas.
    """
    blocks = [i for i, part in enumerate(parts) if FORMULAS.match(part)]
    second = blocks[1] - 1 if len(blocks) > 1 else len(parts)
    first = next((i for i, part in enumerate(parts) if BACKWARD.match(part)), second)
    return parts[:first], parts[first:]


def _equation(parts: list[str], begins: re.Pattern[str] = FORMULAS) -> Any:
    return to_html(next(filter(begins.match, parts), ""))


def paragraphs(text: str) -> list[str]:
    """Return the parts of a text between empty lines, with blocks of formulas whole."""
    parts: list[str] = []
    for part in re.split(r"\n[ \t]*\n", text.strip("\n")):
        if parts and parts[-1].count("$$") % 2:
            parts[-1] += "\n\n" + part
        else:
            parts.append(part)
    return parts


def anchor_of(name: str) -> str:
    return "op-" + name.replace(".", "-")


def tensor_anchor(name: str) -> str:
    return "tensor-" + name.replace(".", "-")


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]
