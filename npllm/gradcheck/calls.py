"""Calls a forward and its backward, and finds which result belongs to which argument.

Input gradients are returned; parameter gradients are added to the arrays given:

    y, cache = NAME_forward(x, weight)
    dx = NAME_backward(dy, cache, weight, dweight)

The backward's first arguments are the gradients of the forward's results, one or more
names with a `d`. An argument with the name of an input is that input; one with a `d`
before it is the array to which that input's gradient is added. All others are what the
forward returns beside its results. The gradients of the inputs without such an array
are returned, in the order of the inputs.
"""

from inspect import Parameter
from typing import Any, NamedTuple

import numpy as np

from npllm.gradcheck.arguments import is_checked
from npllm.gradcheck.pair import Pair


class Mismatch(Exception):
    """The two functions do not fit each other. str(): a sentence."""


class Outcome(NamedTuple):
    """What forward and backward gave.

    results: the forward's. seeds: the gradient of the loss by each of them. gradients:
    name -> what the backward says. starts: name -> what an array for a gradient held
    before. changed: arguments that a call changed.
    """

    results: list[np.ndarray]
    seeds: list[np.ndarray]
    gradients: dict[str, np.ndarray]
    starts: dict[str, np.ndarray]
    changed: list[str]

    def fits(self, inputs: dict[str, Any]) -> bool:
        """Whether every gradient has the shape of its input."""
        return all(gradient.shape == inputs[name].shape for name, gradient in self.gradients.items())


def copies_of(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return the inputs with copies of the arrays."""
    return {name: value.copy() if isinstance(value, np.ndarray) else value for name, value in inputs.items()}


def input_of(name: str) -> str:
    """Return the input whose gradient has this name: x for dx."""
    return name[1:] if name.startswith("d") else ""


def output_names(pair: Pair) -> list[str]:
    """Return the backward's arguments that are gradients of the forward's results."""
    inputs, names = pair.parameters("forward"), []
    for name in pair.parameters("backward"):
        is_own = name in inputs or input_of(name) in inputs or name == "cache"
        if is_own or (names and not name.startswith(("d", "grad"))):
            break
        names.append(name)
    if not names:
        raise Mismatch(f"{pair.name}_backward has no argument for the gradient of the result; name it dy, and first.")
    return names


def results_of(pair: Pair, inputs: dict[str, Any]) -> tuple[list[np.ndarray], list]:
    """Return the forward's results, and what it returns beside them."""
    names, returned = output_names(pair), _called(pair.forward, pair.parameters("forward"), inputs)
    returned = list(returned) if isinstance(returned, tuple) else [returned]
    if len(returned) < len(names):
        raise Mismatch(
            f"{pair.name}_forward returns {len(returned)} values, but {pair.name}_backward starts with the gradients "
            f"of {len(names)}: {', '.join(names)}; let them fit."
        )
    results, beside = returned[: len(names)], returned[len(names) :]
    for name, result in zip(names, results, strict=True):
        if not np.issubdtype(getattr(result, "dtype", type(result)), np.floating):
            raise Mismatch(f"{pair.name}_forward returns {type(result).__name__} where {name} belongs; return floats.")
        if np.asarray(result).dtype != np.float64:
            raise Mismatch(
                f"{pair.name}_forward returns {result.dtype} for float64 inputs, too coarse to check; keep the dtype."
            )
    return results, beside


def _called(function, parameters: dict[str, Parameter], arguments: dict[str, Any]):
    """Call with arguments by name, or by place where the function takes no name."""
    by_keyword = (Parameter.KEYWORD_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    positional = [value for name, value in arguments.items() if parameters[name].kind not in by_keyword]
    named = {name: value for name, value in arguments.items() if parameters[name].kind in by_keyword}
    return function(*positional, **named)


def run(pair: Pair, inputs: dict[str, Any], rng: np.random.Generator) -> Outcome:
    """Call forward and backward once; the inputs stay as they are.

    Raises Mismatch, or whatever the two functions raise.
    """
    own = copies_of(inputs)
    results, beside = results_of(pair, own)
    seeds = {
        name: rng.standard_normal(np.shape(result)) for name, result in zip(output_names(pair), results, strict=True)
    }
    backward = pair.parameters("backward")
    accumulated = [name for name, value in inputs.items() if is_checked(value) and f"d{name}" in backward]
    starts = {name: rng.standard_normal(inputs[name].shape) for name in accumulated}
    added = {name: start.copy() for name, start in starts.items()}
    own_seeds = {name: seed.copy() if seed.ndim else float(seed) for name, seed in seeds.items()}
    returned = _called(pair.backward, backward, _backward_arguments(pair, own, own_seeds, beside, added))
    before, after = inputs | seeds, own | own_seeds
    changed = [name for name in before if not np.array_equal(before[name], after[name])]
    return Outcome(results, list(seeds.values()), _returned(pair, inputs, starts, returned) | added, starts, changed)


def _backward_arguments(pair: Pair, inputs, seeds, beside: list, added) -> dict[str, Any]:
    """Return the backward's arguments by name. seeds, added: by name."""
    forward, backward = pair.parameters("forward"), pair.parameters("backward")
    arguments = dict(seeds)
    others = [
        name for name in backward if name not in arguments and name not in forward and input_of(name) not in forward
    ]
    if len(others) == 1 and len(beside) > 1:
        beside = [tuple(beside)]
    arguments |= dict(zip(others, beside, strict=False))
    for name, parameter in backward.items():
        if name in arguments:
            continue
        if name in inputs:
            arguments[name] = inputs[name]
        elif input_of(name) in added:
            arguments[name] = added[input_of(name)]
        elif parameter.default is Parameter.empty:
            if name not in forward and input_of(name) not in forward:
                raise Mismatch(
                    f"{pair.name}_backward wants {name}, which is no input and is not returned by {pair.name}_forward; "
                    "return it there, or give it a default."
                )
            arguments[name] = forward[name].default if name in forward else None
    return arguments


def _returned(pair: Pair, inputs, starts, returned) -> dict[str, np.ndarray]:
    """Return the gradients that the backward returns, by the names of their inputs."""
    returned = [] if returned is None else list(returned) if isinstance(returned, tuple) else [returned]
    names = [name for name, value in inputs.items() if is_checked(value) and name not in starts]
    if len(returned) > len(names):
        raise Mismatch(
            f"{pair.name}_backward returns {len(returned)} gradients, but only {', '.join(names) or 'no input'} can "
            "have one that is returned; the others are added to arguments such as dweight."
        )
    gradients = {name: np.asarray(gradient) for name, gradient in zip(names, returned, strict=False)}
    for name, gradient in gradients.items():
        if gradient.dtype.kind not in "fiu":
            raise Mismatch(f"{pair.name}_backward returns no array of numbers where d{name} belongs; return one.")
    return gradients
