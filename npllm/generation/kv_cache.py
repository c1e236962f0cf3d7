"""The keys and values of all earlier positions.

Causal attention never changes an earlier position, so its key and value can be kept. A
new token then costs the work of one position instead of the whole sequence.

`KVCache` holds sequences that advance in step. `JoinedCaches` lets sequences of any
lengths, each with a cache of its own, advance by one token in one pass of the model.
"""

from collections.abc import Sequence

import numpy as np

from npllm.kernels.gemm.few_rows import MOST_ROWS
from npllm.model import GPT

MOST_TOGETHER = MOST_ROWS  # sequences in JoinedCaches; products with more rows have other bits


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

    def columns(self, T: int) -> slice:
        """Return the columns of the next T positions."""
        return slice(self.length, self.length + T)

    def positions(self, T: int) -> np.ndarray | None:
        """Return the positions of the next T tokens of each sequence, (batch, T).

        They count from each sequence's start, and are 0 in the padding before it. None
        = the columns are the positions.
        """
        if self.starts is None:
            return None
        columns = np.arange(self.length, self.length + T, dtype=np.int32)
        return np.maximum(columns - self.starts[:, None], 0)

    def attend(self, ops, qkv, layer: int, n_head: int, n_kv_head: int, *, empty=np.empty) -> np.ndarray:
        """Return the attention of new positions to all earlier ones, (batch, T, H·D).

        ops: the model's backend. qkv: (batch, T, (H+2K)·D); keys and values are kept.
        """
        arrays = self.keys[layer], self.values[layer]
        return ops.cached_attention_forward(
            qkv, *arrays, self.length, n_head, n_kv_head, starts=self.starts, empty=empty
        )

    def keep(self, rows: np.ndarray) -> None:
        """Keep only the sequences in the mask `rows`, (batch,) bool."""
        # One after the other, so that the old keys are freed before values are copied.
        self.keys = self.keys[:, rows]
        self.values = self.values[:, rows]
        self.starts = None if self.starts is None else self.starts[rows]


class JoinedCaches:
    """The caches of R sequences that advance by one token together.

    caches: R caches of one sequence each, without padding. For the model, the R new
    tokens are the row (1, R). Each operation but the attention treats the elements of a
    row alike, and the attention takes them one by one. So a sequence gets the same bits
    in any company, as long as the products of matrices do: `MOST_TOGETHER`.
    """

    def __init__(self, caches: Sequence[KVCache]):
        self.caches = caches
        self.length = max(cache.length for cache in caches)  # the pass is not the first of a text

    def columns(self, T: int) -> np.ndarray:
        """Return the column of each new token, (R,) int32."""
        return np.array([cache.length for cache in self.caches], np.int32)

    def positions(self, T: int) -> np.ndarray:
        """Return the position of each new token, (1, R) int32."""
        return self.columns(T)[None]

    def attend(self, ops, qkv, layer: int, n_head: int, n_kv_head: int, *, empty=np.empty) -> np.ndarray:
        """Return each new token's attention to its own sequence, (1, R, H·D).

        qkv: (1, R, (H+2K)·D). The others are as in `KVCache.attend`.
        """
        each = [
            cache.attend(ops, qkv[:, r : r + 1], layer, n_head, n_kv_head, empty=empty)
            for r, cache in enumerate(self.caches)
        ]
        return np.concatenate(each, axis=1)
