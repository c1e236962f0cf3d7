"""Guesses what kind of mistake a wrong gradient shows."""

from collections.abc import Iterator, Mapping
from math import sqrt
from typing import NamedTuple

import numpy as np

from npllm.reference.differences import TOLERANCE


class Wrong(NamedTuple):
    """A gradient that is wrong, and what is known about it.

    backward, right: by the backward and by differences, of one shape. start: what the
    array held to which the backward should add; None if the gradient is returned.
    others: the right gradients of the other inputs by name. sizes: of all inputs, by
    what they are.
    """

    name: str
    backward: np.ndarray
    right: np.ndarray
    start: np.ndarray | None
    others: Mapping[str, np.ndarray]
    sizes: Mapping[str, int]


def guess(wrong: Wrong) -> str:
    """Return a sentence about the kind of mistake."""
    return next(_guesses(wrong))


def _guesses(wrong: Wrong) -> Iterator[str]:
    name, backward, right, start = wrong.name, wrong.backward, wrong.right, wrong.start
    if not np.isfinite(backward).all():
        yield "It is not finite: something was divided by zero, or the array was never written."
        return
    if start is not None and _agree(backward + start, right):
        yield f"It overwrites what d{name} held before; add to it, with d{name} += ..."
    if not backward.any():
        yield _of_zeros(wrong)
    if _agree(backward, -right):
        yield "Its sign is wrong; everything else is right."
    if (factor := _factor(backward, right)) is not None:
        meaning = _meaning(factor, wrong.sizes)
        yield f"It is {factor:.6g} times the right gradient{meaning}; a factor is missing or one is too many."
    if right.ndim >= 2 and right.shape[-1] == right.shape[-2] and _agree(backward, right.swapaxes(-1, -2)):
        yield "It is transposed: rows and columns have changed places."
    for other, gradient in wrong.others.items():
        if gradient.shape == backward.shape and _agree(backward, gradient):
            yield f"It is the gradient of {other}; two gradients have changed places."
    yield from _of_a_part(backward, right)
    yield from _of_a_term(backward, right)
    yield "It fits no simple mistake: compare the backward with the derivation, term by term."


def _of_zeros(wrong: Wrong) -> str:
    if wrong.start is None:
        return "It is zero everywhere: the gradient is missing."
    name = f"d{wrong.name}"
    return (
        f"Nothing is added to {name}. In a function `{name} = ...` only gives the name to another array; write "
        f"`{name} += ...`."
    )


def _agree(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.linalg.norm(a - b) <= TOLERANCE * max(np.linalg.norm(a), np.linalg.norm(b)))


def _factor(backward: np.ndarray, right: np.ndarray) -> float | None:
    """Return f with backward = f right, if there is one."""
    square = float(np.vdot(right, right))
    factor = float(np.vdot(backward, right)) / square if square else 0.0
    return factor if factor and _agree(backward, factor * right) else None


def _meaning(factor: float, sizes: Mapping[str, int]) -> str:
    """Return what a factor may be: a size of an input, its root, or the inverse."""
    for what, n in sizes.items():
        named = {what: n, f"1 / {what}": 1 / n, f"the root of {what}": sqrt(n), f"1 / the root of {what}": n**-0.5}
        for meaning, value in named.items():
            if n > 1 and abs(abs(factor) - value) <= TOLERANCE * value:
                return f" (perhaps {'minus ' if factor < 0 else ''}{meaning})"
    return ""


def _of_a_part(backward: np.ndarray, right: np.ndarray) -> Iterator[str]:
    """Some rows, or some columns, are right."""
    is_right = np.abs(backward - right) <= TOLERANCE * np.maximum(np.abs(right), np.sqrt(np.mean(right**2)))
    if is_right.any():
        for axis in range(right.ndim):
            others = tuple(each for each in range(right.ndim) if each != axis)
            good, bad = is_right.all(axis=others), ~is_right.any(axis=others)
            if (good | bad).all():
                wrong = np.flatnonzero(bad)
                zero = " They are zero." if not np.take(backward, wrong, axis).any() else ""
                yield f"Only the places {_listed(wrong)} along axis {axis} are wrong.{zero}"
        yield f"{np.count_nonzero(~is_right)} of its {right.size} elements are wrong, the others are right."


def _listed(numbers: np.ndarray) -> str:
    first = ", ".join(map(str, numbers[:8]))
    return first + (f" and {len(numbers) - 8} others" if len(numbers) > 8 else "")


def _of_a_term(backward: np.ndarray, right: np.ndarray) -> Iterator[str]:
    """What is missing is the same along an axis, as a mean or a sum would be."""
    missing = right - backward
    for axis in range(right.ndim) if right.ndim > 1 else ():
        along = np.broadcast_to(missing.mean(axis=axis, keepdims=True), missing.shape)
        if right.shape[axis] > 1 and np.linalg.norm(missing - along) <= TOLERANCE * np.linalg.norm(right):
            yield (
                f"What is missing is the same number at all places along axis {axis}: look for a term that is a sum "
                "or a mean over that axis."
            )
