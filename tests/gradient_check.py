"""Compares a gradient that was derived by hand with finite differences of the loss.

`npllm.reference.differences` has the differences, their errors and the tolerance.
"""

from collections.abc import Callable, Mapping

import numpy as np
import proofs

from npllm.reference.differences import NOISE, TOLERANCE, central_difference, numerical_gradient, relative_errors

ELEMENTWISE_UP_TO = 128
N_DIRECTIONS = 6


def check_gradients(
    loss_fn: Callable[[], float],
    arrays: Mapping[str, np.ndarray],
    gradients: Mapping[str, np.ndarray],
    rtol: float = TOLERANCE,
    *,
    elementwise_up_to: int = ELEMENTWISE_UP_TO,
) -> None:
    """Raise AssertionError unless each gradient is the derivative of the loss.

    loss_fn: takes no arguments; returns the scalar loss for what `arrays` hold now.
    arrays: name -> float64 array (a view is fine). Each array is changed in place while
        it is checked, and then restored exactly.
    gradients: name -> the gradient to judge, of the array's shape; the same names.

    Arrays of up to `elementwise_up_to` elements are checked element by element. Larger
    ones are checked along random directions of unit length whose elements are all
    +-1/sqrt(size): an error in any set of elements shows along nearly every direction.

    Two relative errors are bounded. The error of the array is |a - n| / max(|a|, |n|,
    tiny) in Euclidean norms. The error of an element is the same in absolute values,
    but never relative to less than the array's root-mean-square: an element that
    happens to be near zero is a sum of terms that are not. `tiny` is what the
    differences cannot resolve.
    """
    if arrays.keys() != gradients.keys():
        raise AssertionError(f"arrays {sorted(arrays)} but gradients {sorted(gradients)}")
    loss = float(loss_fn())
    if not np.isfinite(loss):
        raise AssertionError(f"the loss is {loss}")
    tiny = NOISE * max(1.0, abs(loss)) / rtol
    for name, array in arrays.items():
        gradient = gradients[name]
        _check_form(name, array, gradient)
        compare = _compare_elements if array.size <= elementwise_up_to else _compare_directions
        compare(name, loss_fn, array, gradient, rtol, tiny)
    proofs.count(proofs.GRADIENTS, len(arrays))
    proofs.count(proofs.ENTRIES, sum(array.size for array in arrays.values() if array.size <= elementwise_up_to))


def _check_form(name, array, gradient):
    if array.dtype != np.float64 or gradient.dtype != np.float64:
        raise AssertionError(f"{name!r}: gradients are checked in float64, not {array.dtype}/{gradient.dtype}")
    if gradient.shape != array.shape:
        raise AssertionError(f"gradient of {name!r} has shape {gradient.shape}, the array {array.shape}")
    if not np.isfinite(gradient).all():
        where = [int(i) for i in np.argwhere(~np.isfinite(gradient))[0]]
        raise AssertionError(f"gradient of {name!r} is not finite at {where}")


def _compare_elements(name, loss, array, analytic, rtol, tiny):
    numerical = numerical_gradient(loss, array)
    norm = max(np.linalg.norm(analytic), np.linalg.norm(numerical), tiny)
    of_array = np.linalg.norm(analytic - numerical) / norm
    scale = max(norm / np.sqrt(array.size), tiny)
    of_elements = relative_errors(analytic, numerical, scale)
    if of_array <= rtol and np.all(of_elements <= rtol):  # False where a NaN is
        return
    worst = np.unravel_index(np.argmax(of_elements), array.shape)
    raise AssertionError(
        f"gradient of {name!r} is wrong: relative error {of_array:.1e} of the array, {of_elements[worst]:.1e} of its "
        f"worst element {_both_values(worst, analytic[worst], numerical[worst])} (allowed: {rtol:.0e})"
    )


def _compare_directions(name, loss, array, analytic, rtol, tiny):
    rng = np.random.default_rng(array.size)
    typical = max(np.linalg.norm(analytic) / np.sqrt(array.size), tiny)
    for _ in range(N_DIRECTIONS):
        direction = rng.choice([-1.0, 1.0], array.shape) / np.sqrt(array.size)
        numerical = central_difference(loss, array, ..., direction)
        error = abs(np.vdot(analytic, direction) - numerical) / max(typical, abs(numerical))
        if not error <= rtol:  # `not <=`: NaN agrees with nothing
            worst = _search_worst_element(loss, array, analytic, direction)
            both = _both_values(worst, analytic[worst], central_difference(loss, array, worst))
            raise AssertionError(
                f"gradient of {name!r} is wrong: relative error {error:.1e} along a random direction (allowed: "
                f"{rtol:.0e}); its worst element is about {both}"
            )


def _search_worst_element(loss, array, analytic, direction):
    """The index of an element with a large error, by bisection.

    Each round keeps the half of the elements that contributes more to the error.
    """
    candidates = np.arange(array.size)
    while len(candidates) > 1:
        halves = np.array_split(candidates, 2)
        errors = []
        for half in halves:
            part = np.zeros(array.size)
            part[half] = direction.reshape(-1)[half] * np.sqrt(array.size)
            part = part.reshape(array.shape)
            errors.append(abs(np.vdot(analytic, part) - central_difference(loss, array, ..., part)))
        candidates = halves[np.argmax(errors)]
    return np.unravel_index(candidates[0], array.shape)


def _both_values(index, analytic, numerical):
    return f"{[int(i) for i in index]}, which is {analytic:.10g} by the backward and {numerical:.10g} by differences"
