"""The keys and values of all earlier positions.

Causal attention never changes an earlier position, so its key and value can be kept. A
new token then costs the work of one position instead of the whole sequence.
"""

import numpy as np

from npllm.model import GPT


class KVCache:
    """Keys and values of `batch` sequences, filled by `GPT.extend`.

    capacity: positions per sequence; None = block_size. starts: (batch,) int32, the
    first position of each sequence after its padding; None = 0.
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
        """Keep only the sequences in the mask `rows`, (batch,) bool."""
        # One after the other, so that the old keys are freed before values are copied.
        self.keys = self.keys[:, rows]
        self.values = self.values[:, rows]
        self.starts = None if self.starts is None else self.starts[rows]
