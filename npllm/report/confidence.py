"""Confidence intervals of a mean."""

from collections.abc import Sequence
from math import sqrt

import numpy as np

NORMAL = 1.959964  # 95 % of a normal distribution are within this many standard deviations
# Likewise of Student's t with 1 to 9 degrees of freedom.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def half_width(values: Sequence[float] | np.ndarray) -> float:
    """Return half the width of a 95 % confidence interval (Student's t) of a mean.

    values: independent. One value gives 0.
    """
    n = len(values)
    return quantile(n - 1) * float(np.std(values, ddof=1)) / sqrt(n) if n > 1 else 0.0


def quantile(freedom: int) -> float:
    """Return the two-sided 95 % quantile of Student's t, to three digits.

    freedom: degrees of freedom, at least 1. Beyond the table it is the expansion about
    the normal distribution (Abramowitz & Stegun, 1964, 26.7.5).
    """
    if freedom <= len(STUDENT):
        return STUDENT[freedom - 1]
    x = NORMAL
    first = (x**3 + x) / 4
    second = (5 * x**5 + 16 * x**3 + 3 * x) / 96
    third = (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / 384
    return x + first / freedom + second / freedom**2 + third / freedom**3
