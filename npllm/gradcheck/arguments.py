"""The inputs of a forward: random arrays, and what the reader gives in their place."""

import ast
import re
from collections.abc import Iterator, Mapping
from inspect import Parameter
from itertools import islice, product
from math import prod
from typing import Any, NamedTuple

import numpy as np

from npllm.errors import ConfigError
from npllm.gradcheck.pair import Pair

MOST_ELEMENTS = 4096  # of an array: all of them are checked
MOST_TRIALS = 2000  # combinations of shapes
N, C, OUT = 5, 7, 6  # rows, columns, columns of another matrix: no factor that is often forgotten
VECTOR = re.compile(r"bias|shift|beta|^b\d?$", re.IGNORECASE)
WEIGHT = re.compile(r"weight|gain|scale|gamma|^w\d?$", re.IGNORECASE)
OF_INTEGERS = re.compile(r"token|target|label|index|^ids$", re.IGNORECASE)


class Given(NamedTuple):
    """What the reader said about one argument: a shape, a range of integers, a value.

    shape: of a random array. below: it holds integers from `low` to below - 1. value:
    a constant; it counts if there is no shape.
    """

    shape: tuple[int, ...] | None = None
    low: int = 0
    below: int | None = None
    value: Any = None


def given(name: str, text: str) -> Given:
    """Return what the text of an option says.

    "4,3": a shape. "0..7:2,3": integers from 0 to 6, and a shape. "=2": a value. Raises
    ConfigError for anything else.
    """
    if text.startswith("="):
        try:
            return Given(value=ast.literal_eval(text[1:]))
        except (ValueError, SyntaxError):
            return Given(value=text[1:])
    match = re.fullmatch(r"(?:(-?\d+)\.\.(\d+):)?(\d+(?:,\d+)*),?", text)
    if match is None:
        raise ConfigError(
            f"--{name} {text} is no shape; write a shape such as 4,3, integers below 7 as 0..7:4,3, or a value as =2."
        )
    low, below, shape = match.groups()
    shape = tuple(map(int, shape.split(",")))
    if not 0 < prod(shape) <= MOST_ELEMENTS:
        raise ConfigError(
            f"--{name} {text} has {prod(shape):,} elements; give 1 to {MOST_ELEMENTS:,}, for all of them are checked."
        )
    if low is not None and int(below) <= int(low):
        raise ConfigError(f"--{name} {text} is an empty range; write the smallest integer, then one past the largest.")
    return Given(shape, int(low or 0), None if below is None else int(below))


def inputs_in_turn(pair: Pair, options: Mapping[str, Given], seed: int) -> Iterator[dict[str, Any]]:
    """Yield inputs of the forward by name, until they fit.

    An argument without a default is a random array, of integers if its name is that of
    tokens or targets. So is one whose default is None, if the backward has an argument
    for its gradient. Shapes that are not given are tried one after the other, the most
    usual first.
    """
    parameters, backward = pair.parameters("forward"), pair.parameters("backward")
    for name in options:
        if name not in parameters:
            raise ConfigError(f"{pair.name}_forward has no argument {name}; it has {', '.join(parameters)}.")
    wanted = [
        name
        for name, parameter in parameters.items()
        if name not in options
        and (parameter.default is Parameter.empty or (parameter.default is None and f"d{name}" in backward))
    ]
    first = next(iter(parameters))
    open_shapes = {name: list(_usual_shapes(name, first, options)) for name in wanted}
    for shapes in islice(product(*open_shapes.values()), MOST_TRIALS):
        chosen = dict(options) | {name: _usual(name, shape) for name, shape in zip(open_shapes, shapes, strict=True)}
        rng = np.random.default_rng(seed)
        yield {name: _made(chosen[name], rng) for name in parameters if name in chosen}


def _usual_shapes(name: str, first: str, options: Mapping[str, Given]) -> Iterator[tuple[int, ...]]:
    """Yield shapes for an input, with the lengths of the given shapes if there are any.

    first: the name of the first input. No weight or bias has its shape, for then a
    backward that forgets to sum over the rows would seem right.
    """
    shapes = [each.shape for each in options.values() if each.shape]
    lengths = list(dict.fromkeys(n for shape in shapes for n in reversed(shape)))
    pairs, columns = list(product(lengths, repeat=2)), lengths or [C]
    of_first = options[first].shape if first in options and options[first].shape else (N, C)
    if name == first:
        yield from [*((N, c) for c in columns), *pairs, *((2, N, c) for c in columns), (N,)]
    elif VECTOR.search(name):
        yield from [*((c,) for c in columns), (OUT,)]
    else:
        if not WEIGHT.search(name):
            yield from [of_first, of_first[:-1], *((*of_first[:-1], c) for c in columns)]
        for c in columns:
            yield from ((c,), (c, OUT), (OUT, c))
        yield from [*(pair for pair in pairs if pair != of_first), (OUT,)]


def _usual(name: str, shape: tuple[int, ...]) -> Given:
    return Given(shape, below=N if OF_INTEGERS.search(name) else None)


def _made(wanted: Given, rng: np.random.Generator) -> Any:
    if wanted.shape is None:
        return wanted.value
    if wanted.below is not None:
        return rng.integers(wanted.low, wanted.below, wanted.shape)
    return rng.standard_normal(wanted.shape)


def is_checked(value: Any) -> bool:
    """Whether an input has a gradient: float arrays do."""
    return isinstance(value, np.ndarray) and value.dtype == np.float64
