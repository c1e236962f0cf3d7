"""The keys and values of every position seen so far.

Causal attention never changes an earlier position, so its key and value can be kept: a new token then costs one
position's work instead of a whole sequence's.
"""

import numpy as np

from npllm.model import GPT


class KVCache:
    """Room for `capacity` positions of `batch` sequences, None = block_size; filled by `GPT.extend`.

    starts: (batch,) int32, the first position of each that counts, where their beginnings are padding; None = 0.
    """

    def __init__(self, model: GPT, batch: int, starts: np.ndarray | None = None, capacity: int | None = None):
        config = model.config
        self.capacity = config.block_size if capacity is None else capacity
        shape = (config.n_layer, batch, config.kv_heads, self.capacity, config.head_width)  # (L, B, K, T, D)
        self.keys = np.zeros(shape, model.dtype)
        self.values = np.zeros(shape, model.dtype)
        self.length = 0  # positions filled
        self.starts = starts

    def keep(self, rows: np.ndarray) -> None:
        """Forget the sequences outside the mask `rows`, (batch,)."""
        self.keys = self.keys[:, rows]  # one after the other: the old half is free before the new one is made
        self.values = self.values[:, rows]
        self.starts = None if self.starts is None else self.starts[rows]
