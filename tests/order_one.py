"""Weights of order one, for every test of a gradient."""

from collections.abc import Mapping

import numpy as np


def fill_with_order_one(params: Mapping[str, np.ndarray], seed: int) -> None:
    """Fill `params` in place with weights of order one.

    They make no gradient small. With the initial weights of 0.02 a wrong term can be
    too small to be seen beside a right one.

    Matrices have unit variance. Those of linear layers are divided by the square root
    of their fan-in, so that activations stay of order one and float64 differences of
    the loss stay accurate. Norm weights are away from 0, and biases are not 0.
    """
    rng = np.random.default_rng(seed)
    for name, array in params.items():
        name = name.removesuffix(".new_rows")
        draws = rng.standard_normal(array.shape)
        if array.ndim == 1:
            array[:] = 1.0 + 0.3 * draws if "norm" in name and name.endswith("weight") else 0.5 * draws
        else:
            is_table = name in ("token_embedding", "position_embedding")
            fan_in = array.shape[1] if name == "lm_head" else array.shape[0]
            array[:] = draws if is_table else draws / np.sqrt(fan_in)
