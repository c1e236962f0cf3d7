"""The memory of a model, computed from its shapes before anything is allocated.

`training_pass` and `evaluation_pass` add up, array by array, what `transformer.py`,
`block.py` and the kernels allocate from the model's two arenas. A change there needs a
change here: the tests compare the sums with the arenas' own peaks, to the byte.
Letters: N = B T rows, C the width, A that of all query heads, Q that of queries, keys
and values together, F that of the MLP, V the vocabulary. The figures are those of the
kernels; in the reference NumPy allocates.
"""

from dataclasses import replace
from math import prod
from typing import NamedTuple

import numpy as np

from npllm.memory.aligned import ALIGNMENT
from npllm.model.config import ModelConfig
from npllm.model.parameters import parameter_shapes, weight_shapes


class Pass(NamedTuple):
    """The bytes at the peaks of a model's two arenas, each reserved in one chunk."""

    arena: int
    scratch: int


class _Rows:
    """The sizes of the arrays of a pass over B rows of T tokens, in bytes.

    Each size is rounded up as an arena does.
    """

    def __init__(self, config: ModelConfig, B: int, T: int, dtype: str):
        self.config, self.B, self.T, self.N = config, B, T, B * T
        self.C, self.F = config.n_embd, config.mlp_width
        self.A = config.n_head * config.head_width
        self.Q = self.A + 2 * config.kv_heads * config.head_width
        self.itemsize, self.rounds = itemsize_of(dtype), dtype == "bf16"
        self.x, self.row = self.array(self.N, self.C), self.array(self.N)  # the stream; a number for each row
        self.no_bias = 0 if config.bias and config.norm == "layernorm" else self.array(self.C)  # zeros for a bias

    def array(self, *shape: int, itemsize: int | None = None) -> int:
        """Return the bytes of one array."""
        return _aligned(prod(shape) * (itemsize or self.itemsize))

    def norm(self) -> int:
        """Return the bytes of the result, the mean and 1 / deviation."""
        return self.x + 2 * self.row + self.no_bias

    def norm_backward(self) -> int:
        """Return the bytes of dx and of the partial gradients of weight and bias."""
        zeros = self.row if self.config.norm == "rmsnorm" else 0
        return self.x + self.array(2, self.chunks(), self.C) + zeros + self.no_bias

    def chunks(self) -> int:
        from npllm.kernels.chunks import CHUNK_ROWS

        return -(-self.N // CHUNK_ROWS)

    def linear_backward(self, n_in: int, n_out: int, *, gelu: bool = False) -> int:
        """Return the bytes of a linear layer's backward.

        They hold dx, the parts of the bias's gradient, the gradient before GELU, and dy
        in bfloat16.
        """
        parts = self.array(self.chunks(), n_out) if gelu or self.config.bias else 0
        before = self.array(self.N, n_out) + (0 if self.config.bias else self.array(n_out)) if gelu else 0
        return parts + before + self.rounded(self.N, n_out) + self.array(self.N, n_in)

    def rounded(self, *shape: int) -> int:
        return self.array(*shape, itemsize=2) if self.rounds else 0

    def attention(self, *, backward: bool, dropout: bool) -> int:
        """Return the bytes that the workers of the attention need."""
        from numba import get_num_threads

        from npllm.kernels import attention

        workers, D = min(get_num_threads(), self.B * self.config.kv_heads), self.config.head_width
        dtype, taken = np.dtype(f"f{self.itemsize}"), []

        def empty(shape, dtype):
            taken.append(_aligned(prod(shape) * np.dtype(dtype).itemsize))

        scratch = attention.backward_scratch if backward else attention.forward_scratch
        scratch(workers, self.T, D, dropout, dtype, empty)
        return sum(taken)

    def block(self, *, dropout: bool) -> Pass:
        """Return the bytes that a block's forward keeps, and those that it frees."""
        gated, rotary = self.config.mlp == "swiglu", self.config.position == "rotary"
        attended = self.array(self.N, self.A) + self.array(self.B, self.config.n_head, self.T)
        attended += self.attention(backward=False, dropout=dropout)
        up = self.array(self.N, self.F)
        kept = self.array(self.N, self.Q) + attended + self.x + self.norm() + up * (2 if gated else 1) + self.x
        if self.config.qk_norm:  # q, k and v before the norm, and 1 / root-mean-square of each head
            kept += self.array(self.N, self.Q) + self.array(self.N, self.config.n_head + self.config.kv_heads)
        scratch = self.norm() + self.x + up + (self.array(self.N, self.Q) if rotary else 0)
        return Pass(kept, scratch + (2 * self.x if dropout else 0))

    def block_backward(self, *, dropout: bool) -> Pass:
        """Return the bytes of a block's backward, which it frees at its end."""
        C, F, Q, up = self.C, self.F, self.Q, self.array(self.N, self.F)
        dropped = self.x if dropout else 0
        second = up + self.linear_backward(F, C)
        if self.config.mlp == "gelu":
            second += self.linear_backward(C, F, gelu=True)
        else:
            second += (2 if self.config.mlp == "swiglu" else 1) * (up + self.linear_backward(C, F))
        attention = self.array(self.N, Q) + self.attention(backward=True, dropout=dropout)
        if self.config.position == "rotary":
            attention += self.array(self.N, Q)
        if self.config.qk_norm:
            attention += self.array(self.N, Q) + self.array(2, self.chunks(), self.config.head_width)
        first = self.linear_backward(self.A, C) + attention + self.norm() + self.linear_backward(C, Q)
        return Pass(2 * self.norm_backward(), dropped + max(first, second))

    def logits(self) -> int:
        """Return the bytes of a chunk of logits, and of the same in bfloat16."""
        from npllm.kernels.logit_chunks import chunk_size

        shape = chunk_size(self.N, self.config.vocab_size, self.itemsize), self.config.vocab_size
        return self.array(*shape) + self.rounded(*shape)


def training_pass(config: ModelConfig, B: int, T: int, dtype: str, *, policy: bool = False) -> Pass:
    """Return the peaks of a forward and backward over B rows of T tokens.

    policy: with log-probabilities in place of the loss.
    """
    rows, dropout = _Rows(config, B, T, dtype), config.dropout > 0
    block, backward = rows.block(dropout=dropout), rows.block_backward(dropout=dropout)
    forward = rows.x * (2 if dropout else 1) + config.n_layer * block.arena + rows.norm()
    head = 4 * rows.row + rows.x + 2 * rows.logits() if policy else rows.row + rows.x + rows.logits()
    way_back = rows.norm_backward() + max(backward.arena, rows.x if dropout else 0)
    return Pass(forward + head + way_back, max(block.scratch, backward.scratch))


def evaluation_pass(config: ModelConfig, B: int, T: int, dtype: str, *, policy: bool = False) -> Pass:
    """Return the peaks of a forward alone, with its head, over B rows of T tokens.

    All blocks use the memory of one. policy: as in `training_pass`.
    """
    rows = _Rows(config, B, T, dtype)
    block = rows.block(dropout=False)
    head = (3 if policy else 2) * rows.row + rows.logits()
    return Pass(rows.x + max(block.arena, rows.norm() + head), block.scratch)


def parameter_bytes(config: ModelConfig, dtype: str) -> int:
    """Return the bytes of the flat buffer of trained parameters."""
    return _bytes_of_layers(parameter_shapes, config, dtype)


def weight_bytes(config: ModelConfig, dtype: str) -> int:
    """Return the bytes of the flat buffer of the weights that a pass multiplies with.

    Only with LoRA is this another buffer than that of the parameters.
    """
    return _bytes_of_layers(weight_shapes, config, dtype)


def fixed_bytes(config: ModelConfig, dtype: str) -> int:
    """Return the bytes that a model keeps beside its parameters.

    They hold the weights in bfloat16 and the tables of rotary positions.
    """
    tables = config.block_size * config.head_width * itemsize_of(dtype) if config.position == "rotary" else 0
    return tables + (_over_layers(_rounded_bytes, config) if dtype == "bf16" else 0)


def _rounded_bytes(config: ModelConfig) -> int:
    head = "token_embedding" if config.tie_embeddings else "lm_head"
    shapes = weight_shapes(config).items()
    return 2 * sum(
        prod(shape) for name, shape in shapes if name == head or (name.startswith("blocks.") and len(shape) == 2)
    )


def product_scratch_bytes(config: ModelConfig, rows: int, dtype: str) -> int:
    """Return the bytes that matrix products keep for the next product.

    They hold packed panels and rounded factors. rows: the rows of a pass.
    """
    from numba import get_num_threads

    from npllm.kernels.gemm.driver import panel_elements, tile_elements

    itemsize = itemsize_of(dtype)
    packed = panel_elements(itemsize) + tile_elements(itemsize)
    widest = max(config.n_embd, config.n_head * config.head_width, config.mlp_width)
    rounded = 2 * rows * widest if dtype == "bf16" else 0
    return get_num_threads() * packed * itemsize + rounded


def itemsize_of(dtype: str) -> int:
    """Return the bytes of a parameter or an activation."""
    return 8 if dtype == "float64" else 4


def _bytes_of_layers(shapes_of, config: ModelConfig, dtype: str) -> int:
    return _over_layers(
        lambda of: sum(_aligned(prod(shape) * itemsize_of(dtype)) for shape in shapes_of(of).values()), config
    )


def _over_layers(count, config: ModelConfig) -> int:
    one, two = (count(replace(config, n_layer=n_layer)) for n_layer in (1, 2))
    return one + (config.n_layer - 1) * (two - one)


def _aligned(n_bytes: int) -> int:
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT
