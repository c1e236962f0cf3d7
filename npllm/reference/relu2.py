r"""ReLU², the squared rectified linear unit.

$$
y = \max(x, 0)^2
$$

Backward. For $x > 0$, $y = x^2$; for $x < 0$, $y = 0$. So

$$
dy/dx = 2 x                               % where $x > 0$
dy/dx = 0                                 % where $x < 0$
dy/dx = 2 \max(x, 0)                      % both at once
$$

At $x = 0$ both formulas have the slope 0. The derivative therefore exists at 0, it is
0, and $2 \max(x, 0)$ gives it. (ReLU itself has a corner there and no derivative.) Only
the second derivative jumps at 0, from 0 to 2.

Why keep x and not y: $\max(x, 0)$ is the root of y, but a root costs more than a
maximum and loses the digits of a y that underflowed.

Source: So et al., "Primer: searching for efficient Transformers for language modeling",
2021.
"""

import numpy as np


def relu2_forward(x):
    r"""Return $y = \max(x, 0)^2$, element by element; x: any shape and float dtype."""
    positive = np.maximum(x, 0.0)
    return positive * positive


def relu2_backward(dy, x):
    r"""Return dx for the gradient dy of $y = \max(x, 0)^2$; both of x's shape."""
    return dy * (2.0 * np.maximum(x, 0.0))
