"""Compares the gradients of a pair with central differences, in float64."""

import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from npllm.errors import ConfigError
from npllm.gradcheck.arguments import Given, inputs_in_turn, is_checked
from npllm.gradcheck.calls import Mismatch, Outcome, copies_of, results_of, run
from npllm.gradcheck.guess import Wrong, guess
from npllm.gradcheck.pair import Pair, in_words
from npllm.reference.differences import NOISE, TOLERANCE, numerical_gradient, relative_errors


class Finding(NamedTuple):
    """What was found about the gradient of one input.

    error: the largest relative error; NaN if there is nothing to compare. where,
    backward, differences: its place and both numbers; None likewise. mistake: a
    sentence; empty where the gradient is right.
    """

    name: str
    error: float = np.nan
    where: tuple[int, ...] | None = None
    backward: float | None = None
    differences: float | None = None
    mistake: str = ""


class Report(NamedTuple):
    """inputs: by name. findings: one for each gradient. problems: sentences about both
    functions as wholes. unchecked: inputs for which the backward gives no gradient.
    """

    inputs: dict[str, Any]
    findings: list[Finding]
    problems: list[str]
    unchecked: list[str]

    @property
    def is_right(self) -> bool:
        return not self.problems and not any(finding.mistake for finding in self.findings)


def check(pair: Pair, options: dict[str, Given], seed: int = 0) -> Report:
    """Return what is right and wrong about a pair.

    options: what is given in place of the usual inputs, by name. Raises ConfigError for
    options that fit no input, and if the forward fails for all inputs.
    """
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # a result that is not finite is reported
        inputs, outcome = _inputs_that_fit(pair, options, seed)
        if isinstance(outcome, str):
            return Report(inputs, [], [outcome], [])
        return _compared(pair, inputs, outcome)


def _inputs_that_fit(pair: Pair, options: dict[str, Given], seed: int) -> tuple[dict[str, Any], Outcome | str]:
    """Return the first inputs that both functions take, and the outcome.

    If there are none: the first ones that the forward takes, and what is wrong then.
    Another shape of the first input is tried only if the forward takes none with this.
    """
    refused, failure = None, None
    for inputs in inputs_in_turn(pair, options, seed):
        first = np.shape(next(iter(inputs.values()), None))
        if failure and first != np.shape(next(iter(failure[0].values()))):
            break
        try:
            results_of(pair, copies_of(inputs))
        except Mismatch as mismatch:
            failure = failure or (inputs, str(mismatch))
            continue
        except Exception as error:
            refused = refused or (inputs, error)
            continue
        outcome = _outcome(pair, inputs, seed)
        if not isinstance(outcome, str) and outcome.fits(inputs):
            return inputs, outcome
        failure = failure or (inputs, outcome)
    if failure:
        return failure
    inputs, error = refused
    raise ConfigError(
        f"{pair.name}_forward fails for {shapes_in_words(inputs)} ({in_words(error)}); give shapes or values that fit, "
        f"as --{next(iter(inputs))} 4,3 would; --help shows how."
    )


def _outcome(pair: Pair, inputs: dict[str, Any], seed: int) -> Outcome | str:
    """Run both functions; return what they gave, or why they failed."""
    try:
        return run(pair, inputs, np.random.default_rng(seed + 1))
    except Mismatch as mismatch:
        return str(mismatch)
    except Exception as error:
        return f"{pair.name}_backward fails for inputs that the forward takes: {in_words(error)}."


def shapes_in_words(inputs: dict[str, Any]) -> str:
    """Return such as: x (4, 3), n_head = 2."""
    each = [
        f"{name} {value.shape}{'' if is_checked(value) else ' of integers'}"
        if isinstance(value, np.ndarray)
        else f"{name} = {value!r}"
        for name, value in inputs.items()
    ]
    return ", ".join(each)


def _compared(pair: Pair, inputs: dict[str, Any], outcome: Outcome) -> Report:
    def loss() -> float:
        results, _ = results_of(pair, inputs)
        return float(sum(np.vdot(seed, result) for seed, result in zip(outcome.seeds, results, strict=True)))

    names = [name for name, each in inputs.items() if is_checked(each)]
    if not names:
        raise ConfigError(f"No input of {pair.name}_forward is a float array; give one a shape, such as --x 4,3.")
    value = loss()
    problems = list(_problems(pair, outcome, value, loss()))
    if problems:
        return Report(inputs, [], problems, [])
    checked = [name for name in names if name in outcome.gradients]
    right = {name: numerical_gradient(loss, inputs[name]) for name in checked}
    tiny = NOISE * max(1.0, abs(value)) / TOLERANCE
    findings = list(_findings(outcome, right, tiny, _sizes(inputs)))
    return Report(inputs, findings, [], [name for name in names if name not in checked])


def _problems(pair: Pair, outcome: Outcome, loss: float, loss_again: float) -> Iterator[str]:
    """Yield why the gradients cannot be compared."""
    for name in outcome.changed:
        yield f"A call changes its argument {name}, which the caller may still need; work on a copy."
    if not outcome.gradients:
        yield f"{pair.name}_backward returns no gradient and takes no array to add one to; return dx."
    if not np.isfinite(loss):
        yield f"{pair.name}_forward returns numbers that are not finite, so nothing can be compared."
    elif loss != loss_again:
        yield f"{pair.name}_forward gives other results for the same inputs; let its random numbers be the same."


def _sizes(inputs: dict[str, Any]) -> dict[str, int]:
    """Return the lengths of all axes, by what they are."""
    arrays = {name: value for name, value in inputs.items() if isinstance(value, np.ndarray)}
    return {
        f"the length of axis {axis} of {name}": n
        for name, array in arrays.items()
        for axis, n in enumerate(array.shape)
    }


def _findings(outcome: Outcome, right: dict[str, np.ndarray], tiny: float, sizes) -> Iterator[Finding]:
    for name, differences in right.items():
        start, backward = outcome.starts.get(name), outcome.gradients[name]
        if backward.shape != differences.shape:
            yield Finding(name, mistake=_of_shape(name, backward.shape, differences.shape))
            continue
        backward = backward if start is None else backward - start
        typical = max(tiny, *(float(np.sqrt(np.mean(each**2))) for each in (backward, differences)))
        errors = np.where(np.isfinite(backward), relative_errors(backward, differences, typical), np.inf)
        where = np.unravel_index(np.argmax(errors), errors.shape)
        numbers = tuple(map(int, where)), float(backward[where]), float(differences[where])
        mistake = ""
        if not errors[where] <= TOLERANCE:
            others = {other: gradient for other, gradient in right.items() if other != name}
            mistake = guess(Wrong(name, backward, differences, start, others, sizes))
        yield Finding(name, float(errors[where]), *numbers, mistake)


def _of_shape(name: str, found: tuple[int, ...], right: tuple[int, ...]) -> str:
    sentence = f"Its shape is {found}, that of {name} is {right}."
    if found == right[::-1]:
        return f"{sentence} It is transposed."
    if len(found) > len(right):
        return f"{sentence} Sum it over the axes along which {name} is used again and again."
    return sentence
