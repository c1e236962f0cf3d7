"""How sure a mean is."""

from collections.abc import Sequence
from math import sqrt

import numpy as np

NORMAL = 1.959964  # 95 % of a normal distribution lie within so many standard deviations
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # the same of Student's t, 1 to 9 degrees


def half_width(values: Sequence[float] | np.ndarray) -> float:
    """Half the width of a 95 % confidence interval of the mean of independent values (Student's t); 0 for one value."""
    n = len(values)
    return quantile(n - 1) * float(np.std(values, ddof=1)) / sqrt(n) if n > 1 else 0.0


def quantile(freedom: int) -> float:
    """Of Student's t, two-sided 95 %, to three digits; freedom: degrees, at least 1.

    Above the table by its expansion about the normal distribution (Abramowitz & Stegun, 1964, 26.7.5).
    """
    if freedom <= len(STUDENT):
        return STUDENT[freedom - 1]
    x = NORMAL
    first = (x**3 + x) / 4
    second = (5 * x**5 + 16 * x**3 + 3 * x) / 96
    third = (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / 384
    return x + first / freedom + second / freedom**2 + third / freedom**3
