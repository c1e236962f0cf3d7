"""The numbers of the book: one small example for each chapter, computed here.

Inputs are random numbers with one decimal. The gradient that arrives from above is
random too, and the loss is its inner product with the output. So each gradient of the
backward can be compared with differences of that loss, in float64.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from npllm import reference
from npllm.reference.differences import largest_error
from npllm.reference.random_streams import EMBEDDING_DROPOUT

Arrays = Mapping[str, np.ndarray]


class Row(NamedTuple):
    """An array of an example.

    value: the array, or a sentence. gradient: of the loss with respect to it, or None.
    error: the largest relative error of that gradient against differences, or None.
    """

    name: str
    value: Any
    gradient: np.ndarray | None = None
    error: float | None = None


class Example(NamedTuple):
    """What the book shows of an operation. text: Markdown with formulas."""

    text: str
    rows: list[Row]


class Draw:
    """draw(2, 3) returns a (2, 3) array of random numbers with one decimal, not 0."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)

    def __call__(self, *shape: int) -> np.ndarray:
        return self.rng.choice([-1.0, 1.0], shape) * self.rng.integers(1, 20, shape) / 10


def checked(
    draw: Draw,
    inputs: Arrays,
    forward: Callable[[], Arrays],
    backward: Callable[[Arrays], Arrays],
) -> list[Row]:
    """Return the rows of an operation: inputs with gradients and errors, then outputs.

    forward: returns the outputs by name for what `inputs` hold now. backward: takes the
    gradients of the outputs by name, and returns those of the inputs.
    """
    outputs = forward()
    given = {name: draw(*np.shape(output)) for name, output in outputs.items()}
    gradients = backward(given)

    def loss() -> float:
        return sum(float(np.vdot(given[name], output)) for name, output in forward().items())

    rows = [
        Row(name, array, gradients[name], largest_error(loss, array, gradients[name], range(array.size)))
        for name, array in inputs.items()
    ]
    return rows + [Row(name, output, given[name]) for name, output in outputs.items()]


def zeros_like(arrays: Arrays, *names: str) -> list[np.ndarray]:
    return [np.zeros_like(arrays[name]) for name in names]


def linear() -> Example:
    draw = Draw(1)
    a = {"x": draw(2, 3), "weight": draw(3, 2), "bias": draw(2)}

    def backward(given: Arrays) -> Arrays:
        dweight, dbias = zeros_like(a, "weight", "bias")
        dx = reference.linear_backward(given["y"], a["x"], a["weight"], dweight, dbias)
        return {"x": dx, "weight": dweight, "bias": dbias}

    rows = checked(draw, a, lambda: {"y": reference.linear_forward(a["x"], a["weight"], a["bias"])[0]}, backward)
    return Example("Two rows, three inputs and two outputs.", rows)


def _activation(forward: Callable, backward: Callable) -> Example:
    draw = Draw(2)
    a = {"x": np.array([-2.0, -0.5, 0.1, 0.5, 2.0])}
    rows = checked(draw, a, lambda: {"y": forward(a["x"])}, lambda given: {"x": backward(given["y"], a["x"])})
    return Example("Five elements, each by itself.", rows)


def gelu() -> Example:
    return _activation(reference.gelu_forward, reference.gelu_backward)


def relu2() -> Example:
    return _activation(reference.relu2_forward, reference.relu2_backward)


def swiglu() -> Example:
    draw = Draw(3)
    a = {"gate": draw(4), "up": draw(4)}

    def backward(given: Arrays) -> Arrays:
        cache = reference.swiglu_forward(a["gate"], a["up"])[1]
        return dict(zip(("gate", "up"), reference.swiglu_backward(given["y"], cache), strict=True))

    rows = checked(draw, a, lambda: {"y": reference.swiglu_forward(a["gate"], a["up"])[0]}, backward)
    return Example("Four units.", rows)


def layernorm() -> Example:
    draw = Draw(4)
    a = {"x": draw(2, 4), "weight": draw(4), "bias": draw(4)}

    def backward(given: Arrays) -> Arrays:
        dweight, dbias = zeros_like(a, "weight", "bias")
        cache = reference.layernorm_forward(a["x"], a["weight"], a["bias"])[1]
        dx = reference.layernorm_backward(given["y"], cache, a["weight"], dweight, dbias)
        return {"x": dx, "weight": dweight, "bias": dbias}

    rows = checked(draw, a, lambda: {"y": reference.layernorm_forward(a["x"], a["weight"], a["bias"])[0]}, backward)
    return Example("Two rows of width 4. Each row of the gradient of x has the sum 0.", rows)


def rmsnorm() -> Example:
    draw = Draw(5)
    a = {"x": draw(2, 4), "weight": draw(4)}

    def backward(given: Arrays) -> Arrays:
        (dweight,) = zeros_like(a, "weight")
        cache = reference.rmsnorm_forward(a["x"], a["weight"])[1]
        return {"x": reference.rmsnorm_backward(given["y"], cache, a["weight"], dweight), "weight": dweight}

    rows = checked(draw, a, lambda: {"y": reference.rmsnorm_forward(a["x"], a["weight"])[0]}, backward)
    return Example("Two rows of width 4. The gradient of a row is orthogonal to the row, up to eps.", rows)


def embedding() -> Example:
    draw = Draw(6)
    tokens = np.array([[2, 0, 2]])
    a = {"token_embedding": draw(4, 2), "position_embedding": draw(3, 2)}

    def backward(given: Arrays) -> Arrays:
        tables = zeros_like(a, *a)
        reference.embedding_backward(given["y"], reference.embedding_forward(tokens, *a.values())[1], *tables)
        return dict(zip(a, tables, strict=True))

    rows = checked(draw, a, lambda: {"y": reference.embedding_forward(tokens, *a.values())[0]}, backward)
    text = "Token 2 occurs twice, so its row collects two gradients. Tokens 1 and 3 do not occur."
    return Example(text, [Row("tokens", tokens), *rows])


def attention() -> Example:
    draw = Draw(7)
    a = {"qkv": draw(1, 3, 6)}
    cache = reference.attention_forward(a["qkv"], 1, 1)[1]
    rows = checked(
        draw,
        a,
        lambda: {"y": reference.attention_forward(a["qkv"], 1, 1)[0]},
        lambda given: {"qkv": reference.attention_backward(given["y"], cache, 1, 1)},
    )
    text = "Three positions, one head of width 2. Each row of `qkv` holds a query, a key and a value."
    return Example(text, [*rows, Row("P", cache.probabilities[0, 0, 0])])


def qk_norm() -> Example:
    draw = Draw(8)
    a = {"qkv": draw(1, 2, 6), "q_weight": draw(2), "k_weight": draw(2)}

    def backward(given: Arrays) -> Arrays:
        weights, cache = zeros_like(a, "q_weight", "k_weight"), reference.qk_norm_forward(*a.values(), 1, 1)[1]
        dqkv = reference.qk_norm_backward(given["y"], cache, a["q_weight"], a["k_weight"], *weights)
        return dict(zip(a, (dqkv, *weights), strict=True))

    rows = checked(draw, a, lambda: {"y": reference.qk_norm_forward(*a.values(), 1, 1)[0]}, backward)
    return Example("Two positions, one head of width 2. The last two columns are the values, which stay.", rows)


def rotary() -> Example:
    draw = Draw(9)
    a = {"qkv": draw(1, 3, 6)}
    tables = reference.rotary_tables(3, 2, np.float64)
    rows = checked(
        draw,
        a,
        lambda: {"y": reference.rotary_forward(a["qkv"], *tables, 1, 1)},
        lambda given: {"qkv": reference.rotary_backward(given["y"], *tables, 1, 1)},
    )
    text = "Three positions, one head of width 2. Position 0 is not rotated, and values never are."
    return Example(text, rows)


def dropout() -> Example:
    draw, rate = Draw(10), 0.5
    a = {"x": draw(8)}
    key = reference.DropoutKey(seed=0, step=1, stream=EMBEDDING_DROPOUT)
    rows = checked(
        draw,
        a,
        lambda: {"y": reference.dropout_forward(a["x"], rate, key)},
        lambda given: {"x": reference.dropout_backward(given["y"], rate, key)},
    )
    return Example("Half of the elements are dropped; the others are doubled, and so are their gradients.", rows)


def add_norm() -> Example:
    draw = Draw(11)
    a = {"x": draw(1, 4), "branch": draw(1, 4), "weight": draw(4), "bias": draw(4)}

    def backward(given: Arrays) -> Arrays:
        dweight, dbias = zeros_like(a, "weight", "bias")
        cache = reference.add_norm_forward(*a.values())[2]
        dx = reference.add_norm_backward(given["total"], given["y"], cache, a["weight"], dweight, dbias)
        return {"x": dx, "branch": dx, "weight": dweight, "bias": dbias}

    rows = checked(
        draw, a, lambda: dict(zip(("total", "y"), reference.add_norm_forward(*a.values())[:2], strict=True)), backward
    )
    return Example("One row of width 4, which has two outputs. x and branch have one gradient.", rows)


def lm_head_loss() -> Example:
    draw = Draw(12)
    targets = np.array([2, 0])
    a = {"x": draw(2, 3), "weight": draw(4, 3)}

    def backward(given: Arrays) -> Arrays:
        (dweight,) = zeros_like(a, "weight")
        cache = reference.lm_head_loss_forward(*a.values(), targets)[1]
        return {
            "x": reference.lm_head_loss_backward(given["nll"], cache, a["weight"], dweight),
            "weight": dweight,
        }

    rows = checked(draw, a, lambda: {"nll": reference.lm_head_loss_forward(*a.values(), targets)[0]}, backward)
    return Example("Two rows and a vocabulary of four tokens.", [Row("targets", targets), *rows])


def lm_head_policy() -> Example:
    draw = Draw(13)
    targets = np.array([2, 0])
    a = {"x": draw(2, 3), "weight": draw(4, 3)}

    def forward() -> Arrays:
        outputs = reference.lm_head_policy_forward(*a.values(), targets)
        return {"log_probability": outputs[0], "entropy": outputs[1]}

    def backward(given: Arrays) -> Arrays:
        (dweight,) = zeros_like(a, "weight")
        cache = reference.lm_head_policy_forward(*a.values(), targets)[2]
        dx = reference.lm_head_policy_backward(*given.values(), cache, a["weight"], dweight)
        return {"x": dx, "weight": dweight}

    text = "The arrays of the chapter on the loss, with two outputs a row."
    return Example(text, [Row("chosen tokens", targets), *checked(draw, a, forward, backward)])
