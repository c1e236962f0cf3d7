r"""Central differences: the derivative of a loss from its values alone.

A gradient that was derived by hand is right if it agrees with them. The derivative of
f along a direction comes from four values of f (central differences of fourth order):

$$
df \approx (8 (f(h) - f(-h)) - (f(2h) - f(-2h))) / (12 h)
$$

The error has two parts. Truncation, $h^4 f^{(5)} / 30$, asks for a small h. Rounding,
about $1.5 eps |f| / h$ with $eps = 1.1 \cdot 10^{-16}$, asks for a large one. At
$h = 2^{-12}$, about 2.4e-4, truncation is $10^{-16} f^{(5)}$ and rounding
$7 \cdot 10^{-13} |f|$. So losses of order one with weights of order one are
differentiated to 1e-11 or better. For smooth losses h could be 4 times larger, but the
norm of a row with a small variance has a large fifth derivative. h is a power of two,
so that $x + h$ is exact for most x.

Differences of second order reach 1e-10 at best in float64 and 1e-4 in float32. That is
too coarse to tell a slightly wrong gradient from a right one, so everything is float64.

Right gradients of every operation agree to a relative 1e-9. The smallest mistake that
counts is larger: a norm whose backward takes another eps, 1e-6 instead of 1e-5, is
wrong by 1e-5. `TOLERANCE` lies between the two.

Source: Abramowitz & Stegun, "Handbook of mathematical functions", 1964, table 25.2.
"""

import numpy as np

STEP = 2.0**-12
TOLERANCE = 1e-6  # of relative errors
NOISE = 1e-11  # error of a difference as a part of |loss|: the rounding above, with a factor 10 to spare


def derivative_at_zero(f, h=STEP) -> float:
    """Return the derivative of f, a function of one number, at 0."""
    return (8 * (f(h) - f(-h)) - (f(2 * h) - f(-2 * h))) / (12 * h)


def central_difference(loss, array, where, direction=1.0) -> float:
    """Return the derivative of a loss as elements of an array move along a direction.

    array: float64; it is changed in place and then restored exactly. where: an index,
    or ... for the whole array.
    """
    original = np.copy(array[where])

    def loss_at(s):
        array[where] = original + s * direction
        return float(loss())

    try:
        return derivative_at_zero(loss_at)
    finally:
        array[where] = original


def numerical_gradient(loss, array) -> np.ndarray:
    """Return the gradient of loss() with respect to an array that it reads.

    array: float64. The gradient is float64 and has the same shape.
    """
    gradient = np.empty(array.shape)
    for index in np.ndindex(array.shape):
        gradient[index] = central_difference(loss, array, index)
    return gradient


def relative_errors(analytic, numerical, typical) -> np.ndarray:
    """Return the relative error of each element, in the shape of the arrays.

    An error is relative to the larger of the two numbers, but never to less than
    `typical`, such as the root-mean-square of the gradient: an element that happens to
    be near zero is a sum of terms that are not. Where all three are zero, so is the
    error.
    """
    scale = np.asarray(np.maximum(np.maximum(np.abs(analytic), np.abs(numerical)), typical))
    return np.divide(np.abs(analytic - numerical), scale, out=np.zeros_like(scale), where=scale != 0.0)


def largest_error(loss, array, gradient, places) -> float:
    """Return the largest relative error of a gradient at some places of an array.

    loss: a function of no arguments that reads the array, float64. gradient: of its
    shape. places: indices into the flat array.
    """
    indices = [np.unravel_index(place, array.shape) for place in places]
    numerical = np.array([central_difference(loss, array, index) for index in indices])
    analytic = np.array([gradient[index] for index in indices])
    return float(relative_errors(analytic, numerical, np.sqrt(np.mean(gradient**2))).max())
