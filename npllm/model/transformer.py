"""The model: embedding, L blocks, a final norm, the head. Reads from top to bottom like the figure in the paper.

    tokens (B,T) ── embedding ── block 0 ── ... ── block L-1 ── final norm ── head ── logits (B,T,V)

Source: Radford et al., "Language models are unsupervised multitask learners" (GPT-2), 2019; the choices norm =
rmsnorm, position = rotary, mlp = swiglu are those of Touvron et al., "LLaMA", 2023.
"""

from importlib import import_module
from typing import Literal

import numpy as np

from npllm.errors import ConfigError, DataError
from npllm.model.arena import Arena
from npllm.model.block import Context, block_backward, block_forward, norm_backward, norm_forward
from npllm.model.config import ModelConfig
from npllm.model.parameters import Parameters, initialise, parameter_shapes, within
from npllm.model.rounded_weights import RoundedWeights
from npllm.reference.lm_head_loss import IGNORED
from npllm.reference.rotary import rotary_tables

EMBEDDING_DROPOUT_SITE = 0
DTYPES = ("float32", "float64", "bf16")
BACKENDS = ("kernels", "reference")


class GPT:
    """A decoder-only Transformer language model with hand-written gradients.

    dtype "bf16": parameters, gradients and everything between two matrix products are float32; what is multiplied is
    rounded to bfloat16, and the products are summed in float32.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        seed: int = 0,
        dtype: str = "float32",
        backend: Literal["kernels", "reference"] = "kernels",
    ):
        if dtype not in DTYPES:
            raise ConfigError(f"The dtype {dtype!r} is not one of {', '.join(DTYPES)}.")
        if backend not in BACKENDS:
            raise ConfigError(f"The backend {backend!r} is not one of {', '.join(BACKENDS)}.")
        if not 0 <= seed < 2**64:
            raise ConfigError(f"The seed is {seed}, but must be at least 0 and below 2^64.")
        if (dtype, backend) == ("bf16", "reference"):
            raise ConfigError("The reference backend has no bf16; use float32 or float64.")
        self.config = config
        self.seed = seed
        self.dtype_name = dtype
        self.dtype = np.dtype("float32" if dtype == "bf16" else dtype)  # of parameters and activations
        self.ops = import_module(f"npllm.{backend}")
        self.arena, self.scratch = Arena(), Arena()
        shapes = parameter_shapes(config)
        self.params = Parameters(shapes, self.dtype)
        self.grads = Parameters(shapes, self.dtype)
        initialise(self.params, config, seed)
        self._rounded = RoundedWeights(self.params, self.head_name) if dtype == "bf16" else None
        weights = self.params if self._rounded is None else self._rounded
        self._head = weights[self.head_name]
        self._blocks = [within(weights, f"blocks.{layer}") for layer in range(config.n_layer)]
        self._dblocks = [within(self.grads, f"blocks.{layer}") for layer in range(config.n_layer)]
        self._rotary = None
        if config.position == "rotary":
            self._rotary = rotary_tables(config.block_size, config.head_width, self.dtype)

    @property
    def head_name(self) -> str:
        """The parameter that is the last layer's weight, (V, C)."""
        return "token_embedding" if self.config.tie_embeddings else "lm_head"

    def loss_and_grad(self, tokens, targets, *, n_targets: int | None = None, step: int = 0, first_row: int = 0):
        """Mean negative log-likelihood of the targets, in nats; its gradient is *added* to `grads`.

        tokens, targets: (B, T) integers below V; target -1 = ignored. For gradient accumulation give n_targets, the
        number of targets of the whole batch (the returned losses then add up to its mean), and first_row, the rows in
        earlier micro-batches. step and first_row address the dropout masks.
        """
        tokens, targets = self._check(tokens, targets)
        n_targets = self._count(targets) if n_targets is None else n_targets
        self._begin()
        context = self._context(tokens.shape[1], rate=self.config.dropout, step=step, first_row=first_row)
        hidden, caches = self._forward(context, tokens)
        loss, dhidden = self.ops.lm_head_loss_and_grad(
            hidden,
            self._head,
            targets.reshape(-1),
            n_targets,
            self.grads[self.head_name],
            empty=self.arena.empty,
        )
        self._backward(context, dhidden, caches)
        return loss

    def loss(self, tokens, targets) -> float:
        """Mean negative log-likelihood of the targets, in nats, without dropout. Arguments as in `loss_and_grad`."""
        tokens, targets = self._check(tokens, targets)
        nll = self.negative_log_likelihood(tokens, targets)
        return float(nll.sum(dtype=np.float64)) / self._count(targets)

    def negative_log_likelihood(self, tokens, targets) -> np.ndarray:
        """Of each target, in nats, (B, T); 0 where the target is -1. Without dropout."""
        tokens, targets = self._check(tokens, targets)
        hidden = self._evaluate(tokens)
        nll, _ = self.ops.lm_head_loss_forward(hidden, self._head, targets.reshape(-1), empty=self.arena.empty)
        return nll.reshape(targets.shape).copy()

    def logits(self, tokens) -> np.ndarray:
        """Unnormalised log-probabilities of every next token, (B, T, V). Without dropout."""
        tokens, _ = self._check(tokens, None)
        hidden = self._evaluate(tokens)
        return self.ops.linear_forward(hidden, self._head.T)[0].reshape(*tokens.shape, -1)

    def extend(self, tokens, kv_cache) -> np.ndarray:
        """Logits of the token after the last, (B, V), where kv_cache holds the positions before these tokens, (B, T).

        kv_cache: a `KVCache`, which must have room for T more positions; afterwards it holds them too.
        """
        tokens, _ = self._check(tokens, None)
        if kv_cache.length + tokens.shape[1] > kv_cache.capacity:
            raise DataError(f"The cache holds {kv_cache.length} of {kv_cache.capacity} positions; it cannot take more.")
        hidden = self._evaluate(tokens, kv_cache)
        kv_cache.length += tokens.shape[1]
        last = hidden.reshape(*tokens.shape, -1)[:, -1]  # (B, C)
        return self.ops.linear_forward(last, self._head.T)[0]

    def _begin(self, *, round_weights: bool = True) -> None:
        """Another pass: nothing that an earlier one allocated is valid any more."""
        self.arena.reset()
        self.scratch.reset()
        if self._rounded is not None and round_weights:
            self._rounded.refresh()

    def _context(self, length: int, *, rate=0.0, step=0, first_row=0, kv_cache=None) -> Context:
        first = 0 if kv_cache is None else kv_cache.length
        cos, sin = (None, None) if self._rotary is None else (table[first : first + length] for table in self._rotary)
        memory = self.arena.empty, self.scratch
        return Context(self.ops, self.config, *memory, rate, self.seed, step, first_row, cos, sin, kv_cache)

    def _embed(self, context: Context, tokens):
        """(B, T) -> (B, T, C)"""
        x, cache = self.ops.embedding_forward(
            tokens,
            self.params["token_embedding"],
            self.params.get("position_embedding"),
            first_position=0 if context.kv_cache is None else context.kv_cache.length,
            empty=self.arena.empty,
        )
        if context.rate > 0:
            key = context.dropout_key(EMBEDDING_DROPOUT_SITE, x[0].size)
            x = self.ops.dropout_forward(x, context.rate, key, empty=self.arena.empty)
        return x, cache

    def _final_norm(self, context: Context, x):
        """(B, T, C) -> (N, C)"""
        rows = x.reshape(-1, x.shape[-1])
        return norm_forward(
            context, rows, self.params["final_norm.weight"], self.params.get("final_norm.bias"), empty=context.empty
        )

    def _forward(self, context: Context, tokens):
        """The rows before the head, (N, C), and everything that `_backward` needs."""
        x, embedding = self._embed(context, tokens)
        blocks = []
        for layer, p in enumerate(self._blocks):
            x, cache = block_forward(context, p, x, layer)
            blocks.append(cache)
        hidden, final_norm = self._final_norm(context, x)
        return hidden, (embedding, blocks, final_norm)

    def _backward(self, context: Context, dhidden, caches) -> None:
        """Add the gradients of all parameters but the head's, for dhidden, (N, C)."""
        embedding, blocks, final_norm = caches
        dx = norm_backward(
            context,
            dhidden,
            final_norm,
            self.params["final_norm.weight"],
            self.grads["final_norm.weight"],
            self.grads.get("final_norm.bias"),
        ).reshape(*embedding.tokens.shape, -1)
        for layer in reversed(range(self.config.n_layer)):
            with self.arena.scope():
                dx[...] = block_backward(context, self._blocks[layer], self._dblocks[layer], dx, blocks[layer], layer)
        if context.rate > 0:
            key = context.dropout_key(EMBEDDING_DROPOUT_SITE, dx[0].size)
            dx = self.ops.dropout_backward(dx, context.rate, key, empty=self.arena.empty)
        self.ops.embedding_backward(
            dx,
            embedding,
            self.grads["token_embedding"],
            self.grads.get("position_embedding"),
            empty=self.arena.empty,
        )

    def _evaluate(self, tokens, kv_cache=None):
        """`_forward` without dropout that keeps nothing for a backward: the memory of one block serves them all."""
        # A text is written with the weights that it began with.
        self._begin(round_weights=kv_cache is None or kv_cache.length == 0)
        context = self._context(tokens.shape[1], kv_cache=kv_cache)
        x, _ = self._embed(context, tokens)
        for layer, p in enumerate(self._blocks):
            with self.arena.scope():
                x[...] = block_forward(context, p, x, layer)[0]
        return self._final_norm(context, x)[0]

    def _check(self, tokens, targets):
        """The arguments as contiguous int32 arrays, once they are known to be safe to index with."""
        tokens = self._check_ids("tokens", tokens, lowest=0)
        if tokens.shape[1] > self.config.block_size:
            raise DataError(
                f"A sequence of {tokens.shape[1]} tokens is longer than model.block_size = {self.config.block_size}."
            )
        if targets is not None:
            targets = self._check_ids("targets", targets, lowest=IGNORED)
            if targets.shape != tokens.shape:
                raise DataError(f"The shape of targets, {targets.shape}, is not that of tokens, {tokens.shape}.")
        return tokens, targets

    def _check_ids(self, name: str, ids, lowest: int) -> np.ndarray:
        ids = np.ascontiguousarray(ids)
        if ids.ndim != 2 or ids.size == 0 or ids.dtype.kind not in "iu":
            raise DataError(f"{name} must be a (B, T) array of integers, not {ids.shape} of {ids.dtype}.")
        if ids.min() < lowest or ids.max() >= self.config.vocab_size:
            raise DataError(
                f"{name} holds ids from {ids.min()} to {ids.max()}, but the vocabulary has the ids 0 to "
                f"{self.config.vocab_size - 1}."
            )
        return ids.astype(np.int32, copy=False)

    @staticmethod
    def _count(targets) -> int:
        n_targets = int(np.count_nonzero(targets != IGNORED))
        if n_targets == 0:
            raise DataError("Every target is -1 (ignored), so there is nothing to learn from; unmask some targets.")
        return n_targets
