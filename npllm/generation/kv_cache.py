"""The keys and values of every position seen so far.

Causal attention never changes an earlier position, so its key and value can be kept: a new token then costs one
position's work instead of a whole sequence's.
"""

import numpy as np

from npllm.model import GPT


class KVCache:
    """Room for `block_size` positions of `batch` sequences; filled by `GPT.extend`.

    starts: (batch,) int32, the first position of each that counts, where their beginnings are padding; None = 0.
    """

    def __init__(self, model: GPT, batch: int, starts: np.ndarray | None = None):
        config = model.config
        shape = (config.n_layer, batch, config.kv_heads, config.block_size, config.head_width)  # (L, B, K, T, D)
        self.keys = np.zeros(shape, model.dtype)
        self.values = np.zeros(shape, model.dtype)
        self.capacity = config.block_size
        self.length = 0  # positions filled
        self.starts = starts

    def keep(self, rows: np.ndarray) -> None:
        """Forget the sequences outside the mask `rows`, (batch,)."""
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]
        self.starts = None if self.starts is None else self.starts[rows]
