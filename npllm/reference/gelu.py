r"""GELU, the Gaussian error linear unit, in its tanh form.

GELU multiplies x by the probability that a standard normal variable is below x. GPT-2
uses the approximation

$$
y = \frac{x}{2} (1 + \tanh u)
u = s (x + a x^3)                         % $s = \sqrt{2 / \pi}$, $a = 0.044715$
$$

Backward, by the product rule, with $\tanh' = 1 - \tanh^2$:

$$
dy/dx = \frac{1}{2} (1 + \tanh u) + \frac{x}{2} (1 - \tanh^2 u) s (1 + 3 a x^2)
$$

Why keep x and not y or $\tanh u$: the derivative is not a function of y, because GELU
is not monotonic. Computing tanh again is cheaper than storing and reading a second
array of the widest activation of the network.

Source: Hendrycks & Gimpel, "Gaussian error linear units", 2016.
"""

import numpy as np

SQRT_2_OVER_PI = 0.7978845608028654
CUBIC = 0.044715


def gelu_forward(x):
    """Return $y = GELU(x)$, element by element; x: any shape and float dtype."""
    tanh_u = np.tanh(SQRT_2_OVER_PI * (x + CUBIC * x * x * x))
    return 0.5 * x * (1.0 + tanh_u)


def gelu_backward(dy, x):
    """Return dx for the gradient dy of $y = GELU(x)$; both have x's shape."""
    tanh_u = np.tanh(SQRT_2_OVER_PI * (x + CUBIC * x * x * x))
    du_dx = SQRT_2_OVER_PI * (1.0 + 3.0 * CUBIC * x * x)
    return dy * (0.5 * (1.0 + tanh_u) + 0.5 * x * (1.0 - tanh_u**2) * du_dx)
