"""Linear probes: what a linear classifier reads from the residual stream.

The classifier is ridge regression of one-hot labels, in closed form:

    W = (XᵀX + λ n I)⁻¹ Xᵀ Y        X: (n, C+1), standardised, with a column of ones

and the class is the largest output. Source: Alain & Bengio, "Understanding intermediate
layers using linear classifier probes", 2016.
"""

import numpy as np

RIDGE = 1e-3  # λ, times the number of rows
LEAST_SHARE = 0.02  # of a label that is not too rare to be learnt
LEAST_ROWS = 50


def probe_accuracy(x_train, y_train, x_test, y_test) -> float:
    """Return the share of test rows whose class a linear probe finds.

    x_train, x_test: (n, C). y_train, y_test: (n,), integer classes from 0 on.
    """
    x_train, x_test = x_train.astype(np.float64), x_test.astype(np.float64)
    mean, deviation = x_train.mean(axis=0), x_train.std(axis=0)
    deviation[deviation == 0.0] = 1.0
    x_train, x_test = (_with_ones((x - mean) / deviation) for x in (x_train, x_test))
    targets = np.eye(int(max(y_train.max(), y_test.max())) + 1)[y_train]  # (n, classes)
    penalty = RIDGE * len(x_train) * np.eye(x_train.shape[1])
    weight = np.linalg.solve(x_train.T @ x_train + penalty, x_train.T @ targets)
    return float(((x_test @ weight).argmax(axis=1) == y_test).mean())


def chance_accuracy(y_test) -> float:
    """Return the accuracy of always naming the most frequent class of the test rows."""
    return float(np.bincount(y_test).max() / len(y_test))


def can_be_probed(y_train, y_test) -> bool:
    """Whether there are enough rows, and at least two classes that are not rare."""
    if min(len(y_train), len(y_test)) < LEAST_ROWS:
        return False
    return bool((np.bincount(y_train) >= LEAST_SHARE * len(y_train)).sum() >= 2)


def _with_ones(x):
    return np.concatenate([x, np.ones((len(x), 1))], axis=1)
