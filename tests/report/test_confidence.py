"""Confidence intervals of means, compared with published quantiles of Student's t."""

import numpy as np
import pytest

from npllm.report.confidence import half_width, quantile


@pytest.mark.parametrize(
    ("freedom", "expected"),
    [(1, 12.706), (4, 2.776), (9, 2.262), (10, 2.228), (15, 2.131), (30, 2.042), (120, 1.980), (10**9, 1.960)],
)
def test_quantiles(freedom, expected):
    assert quantile(freedom) == pytest.approx(expected, abs=6e-4)


def test_half_the_width():
    """Two values have a standard deviation of sqrt(1/2). One value has no interval."""
    assert half_width([0.0, 1.0]) == pytest.approx(12.706 * np.sqrt(0.5) / np.sqrt(2))
    values = np.array([0.0, 1.0] * 50)
    assert half_width(values) == pytest.approx(1.984 * values.std(ddof=1) / 10, abs=1e-4)
    assert half_width([3.0]) == 0.0
