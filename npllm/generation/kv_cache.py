"""The keys and values of every position seen so far.

Causal attention never changes an earlier position, so its key and value can be kept: a new token then costs one
position's work instead of a whole sequence's.
"""

import numpy as np

from npllm.model import GPT


class KVCache:
    """Room for `block_size` positions of `batch` sequences; filled by `GPT.extend`."""

    def __init__(self, model: GPT, batch: int):
        config = model.config
        shape = (config.n_layer, batch, config.kv_heads, config.block_size, config.head_width)  # (L, B, K, T, D)
        self.keys = np.zeros(shape, model.dtype)
        self.values = np.zeros(shape, model.dtype)
        self.capacity = config.block_size
        self.length = 0  # positions filled
