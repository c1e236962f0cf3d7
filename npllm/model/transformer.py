"""The model: embedding, L blocks, a final norm and the head.

    tokens, (B, T) ─ embedding ─ block 0 ... L-1 ─ final norm ─ head ─ logits, (B, T, V)

"Lifetimes" in `threads.py` tells how long the arrays of a pass are valid.

Source: Radford et al., "Language models are unsupervised multitask learners" (GPT-2),
2019; rmsnorm, rotary and swiglu as in Touvron et al., "LLaMA", 2023; relu2 as in So et
al., "Primer", 2021; qk_norm as in "Qwen3 technical report", 2025.
"""

import threading
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from npllm.errors import ConfigError, DataError
from npllm.memory.arena import Arena
from npllm.model.backends import BACKENDS, operations_of
from npllm.model.block import Context, block_backward, block_forward, norm_backward, norm_forward
from npllm.model.checked_ids import checked_batch, checked_starts, checked_tokens, count_targets
from npllm.model.config import ModelConfig
from npllm.model.lora import LoRA, Workspace, new_workspace
from npllm.model.parameters import WHOLE, Parameters, initialise, nobody, parameter_shapes, weight_shapes
from npllm.model.rounded_weights import RoundedWeights
from npllm.model.threads import Memory, one_thread_at_a_time
from npllm.model.views import network_views
from npllm.reference.random_streams import EMBEDDING_DROPOUT
from npllm.reference.rotary import rotary_tables

DTYPES = ("float32", "float64", "bf16")


class Storage(NamedTuple):
    """Arrays that a model uses instead of its own; the last two with LoRA only."""

    params: Mapping[str, np.ndarray] | None = None
    grads: Mapping[str, np.ndarray] | None = None
    frozen: Parameters | None = None
    workspace: Workspace | None = None


class Trace(NamedTuple):
    """A forward pass with all that its backward needs; its arrays lie in `arena`."""

    hidden: np.ndarray  # (N, C): the rows before the heads
    context: Context
    caches: Any


class GPT:
    """A decoder-only Transformer language model with hand-written gradients.

    params: the trained parameters by name. grads: their gradients. weights: the arrays
    that a pass multiplies with. They are params themselves, except with LoRA: then each
    pass first merges them from the frozen weights and the trained factors.

    dtype "bf16": parameters, gradients and everything between two matrix products are
    float32. The factors of matrix products are rounded to bfloat16, and the products
    are summed in float32.

    Threads may share a model (`threads.py`). Code that changes the parameters, such as
    an optimiser, must ensure that no other thread uses the model meanwhile.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        seed: int = 0,
        dtype: str = "float32",
        backend: Literal["kernels", "reference"] = "kernels",
        storage: Storage = Storage(),  # noqa: B008 (immutable)
    ):
        if dtype not in DTYPES:
            raise ConfigError(f"The dtype {dtype!r} does not exist; choose one of {', '.join(DTYPES)}.")
        if backend not in BACKENDS:
            raise ConfigError(f"The backend {backend!r} does not exist; choose one of {', '.join(BACKENDS)}.")
        if not 0 <= seed < 2**64:
            raise ConfigError(f"The seed is {seed}; set it to at least 0 and below 2^64.")
        if (dtype, backend) == ("bf16", "reference"):
            raise ConfigError("The reference backend has no bf16; use float32 or float64.")
        self.config = config
        self.seed = seed
        self.dtype_name = dtype
        self.dtype = np.dtype("float32" if dtype == "bf16" else dtype)  # of parameters and activations
        self.ops = operations_of(backend)
        self.memory = Memory()
        self.turn = threading.RLock()
        self._take(storage)
        self._rounded = RoundedWeights(self.weights, self.head_name) if dtype == "bf16" else None
        self.views, self.dviews = (network_views(arrays, config) for arrays in (self.weights, self.dweights))
        if self._rounded is not None:  # embedding and norms read the weights themselves
            rounded = network_views(self._rounded, config)
            self.views = self.views._replace(blocks=rounded.blocks, head=rounded.head)
        self._rotary = None
        if config.position == "rotary":
            self._rotary = rotary_tables(config.block_size, config.head_width, self.dtype, config.rope_theta)

    def _take(self, storage: Storage) -> None:
        """Make parameters with their initial values, or use the given ones."""
        shapes = parameter_shapes(self.config)
        self.params = Parameters(shapes, self.dtype) if storage.params is None else storage.params
        self.grads = Parameters(shapes, self.dtype) if storage.grads is None else storage.grads
        if storage.params is None:
            initialise(self.params, self.config, self.seed)
        self.weights, self.dweights = self.params, self.grads
        self.frozen, self._lora = None, None
        if self.config.lora_rank:
            self.frozen = storage.frozen
            if self.frozen is None:
                self.frozen = Parameters(weight_shapes(self.config), self.dtype)
                initialise(self.frozen, self.config, self.seed)
            workspace = storage.workspace or new_workspace(self.config, self.dtype)
            self._lora = LoRA(self.ops, self.config, self.params, self.grads, self.frozen, workspace)
            self.weights, self.dweights = workspace

    def __repr__(self) -> str:
        count = sum(weight.size for weight in self.weights.values())
        size = f"{count / 1e6:.2f} M" if count >= 1e4 else f"{count:,}"
        return f"GPT({self.config.in_words()}; {size} parameters, {self.dtype_name})"

    def parts(self) -> dict[str, "GPT"]:
        """Return the networks with these parameters, by name: this one."""
        return {WHOLE: self}

    @property
    def arena(self) -> Arena:
        """This thread's arena of what a pass keeps ("Lifetimes")."""
        return self.memory.arena

    @property
    def scratch(self) -> Arena:
        """This thread's arena of what a block needs while it runs ("Lifetimes")."""
        return self.memory.scratch

    @property
    def head_name(self) -> str:
        """The name of the parameter that is the last layer's weight, (V, C)."""
        return "token_embedding" if self.config.tie_embeddings else "lm_head"

    @one_thread_at_a_time
    def merged(self) -> Mapping[str, np.ndarray]:
        """Return the weights that the next pass would use."""
        if self._lora is not None:
            self._lora.merge()
        return self.weights

    @one_thread_at_a_time
    def trace(self, tokens, *, starts=None, step: int = 0, first_row: int = 0) -> Trace:
        """Run a forward pass of training, with dropout, for `backward`.

        tokens: (B, T). starts: (B, T) integers, the start of each position's document
        in its row; attention does not look further back, and positions count from
        there. None = a row is one document. step, first_row: they address the dropout
        masks; first_row is the number of rows in earlier micro-batches.
        """
        tokens, starts = checked_tokens(tokens, self.config), checked_starts(starts, tokens)
        self._begin()
        rate = self.config.dropout
        context = self._context(tokens.shape[1], rate=rate, step=step, first_row=first_row, starts=starts)
        return Trace(*self._forward(context, tokens))

    @one_thread_at_a_time
    def backward(self, trace: Trace, dhidden, *, when_final: Callable[[str], None] = nobody) -> None:
        """Add all gradients below the heads, for dhidden, (N, C), of the trace.

        when_final: as in `loss_and_grad`.
        """
        self._backward(trace.context, dhidden, trace.caches, when_final)
        if self._lora is not None:
            self._lora.take_gradients()

    @one_thread_at_a_time
    def hidden(self, tokens, *, starts=None) -> np.ndarray:
        """Return the rows before the heads, (N, C), in `arena`, without dropout."""
        tokens, starts = checked_tokens(tokens, self.config), checked_starts(starts, tokens)
        return self._evaluate(tokens, starts=starts)

    @one_thread_at_a_time
    def log_probability_forward(self, hidden, targets):
        """Return each row's log-probability of its target, its entropy, and the cache.

        hidden: (N, C). targets: (N,), -1 = ignored. Both results are (N,), in nats, and
        0 where the target is -1.
        """
        return self.ops.lm_head_policy_forward(hidden, self.views.head, targets, empty=self.arena.empty)

    @one_thread_at_a_time
    def log_probability_backward(self, dlog_probability, dentropy, cache) -> np.ndarray:
        """Return dhidden, (N, C), and add to the head's gradient.

        dlog_probability, dentropy: (N,); dentropy: None = zeros.
        """
        return self.ops.lm_head_policy_backward(
            dlog_probability, dentropy, cache, self.views.head, self.dviews.head, empty=self.arena.empty
        )

    @one_thread_at_a_time
    def readout(self, hidden) -> np.ndarray:
        """Return the second head's outputs, (n, n_outputs), for hidden, (n, C)."""
        return self.ops.linear_forward(hidden, self.params["readout.weight"], self.params["readout.bias"])[0]

    @one_thread_at_a_time
    def readout_backward(self, doutputs, hidden) -> np.ndarray:
        """Return dhidden, (n, C), and add to the second head's gradients.

        doutputs: (n, n_outputs).
        """
        return self.ops.linear_backward(
            doutputs,
            hidden,
            self.params["readout.weight"],
            self.grads["readout.weight"],
            self.grads["readout.bias"],
        )

    @one_thread_at_a_time
    def loss_and_grad(
        self, tokens, targets, *, n_targets=None, starts=None, step: int = 0, first_row: int = 0, when_final=nobody
    ) -> float:
        """Return the mean negative log-likelihood, in nats, and *add* its gradient.

        tokens, targets: (B, T) integers below V; target -1 = ignored. With gradient
        accumulation, n_targets is the number of targets of the whole batch, so that the
        losses of its micro-batches add up to the mean. The others are as in `trace`.
        when_final: called with the name of each span of `grads` (`Parameters.spans`)
        that is complete before the rest; without LoRA those are a head and the blocks.
        """
        tokens, targets = checked_batch(tokens, targets, self.config)
        n_targets = count_targets(targets) if n_targets is None else n_targets
        trace = self.trace(tokens, starts=starts, step=step, first_row=first_row)
        loss, dhidden = self.ops.lm_head_loss_and_grad(
            trace.hidden,
            self.views.head,
            targets.reshape(-1),
            n_targets,
            self.dviews.head,
            empty=self.arena.empty,
        )
        if self._lora is not None:
            when_final = nobody
        elif not self.config.tie_embeddings:
            when_final(self.head_name)
        self.backward(trace, dhidden, when_final=when_final)
        return loss

    def loss(self, tokens, targets, *, starts=None) -> float:
        """Return the loss of `loss_and_grad`, without dropout and without gradients."""
        tokens, targets = checked_batch(tokens, targets, self.config)
        nll = self.negative_log_likelihood(tokens, targets, starts=starts)
        return float(nll.sum(dtype=np.float64)) / count_targets(targets)

    @one_thread_at_a_time
    def negative_log_likelihood(self, tokens, targets, *, starts=None) -> np.ndarray:
        """Return each target's negative log-likelihood, (B, T), without dropout.

        It is in nats, and 0 where the target is -1.
        """
        tokens, targets = checked_batch(tokens, targets, self.config)
        hidden = self.hidden(tokens, starts=starts)
        nll, _ = self.ops.lm_head_loss_forward(hidden, self.views.head, targets.reshape(-1), empty=self.arena.empty)
        return nll.reshape(targets.shape).copy()

    def logits(self, tokens) -> np.ndarray:
        """Return the logits of every next token, (B, T, V), without dropout."""
        return self.logits_of(self.hidden(tokens)).reshape(*np.shape(tokens), -1)

    @one_thread_at_a_time
    def logits_of(self, hidden) -> np.ndarray:
        """Return the logits, (n, V), of rows before the head, (n, C)."""
        return self.ops.linear_forward(hidden, self.views.head.T)[0]

    @one_thread_at_a_time
    def extend(self, tokens, kv_cache) -> np.ndarray:
        """Return the logits of the token after the given ones, (B, V).

        tokens: (B, T). kv_cache: a `KVCache` that holds the positions before these and
        has room for T more; afterwards it holds these too.
        """
        tokens = checked_tokens(tokens, self.config)
        if kv_cache.length + tokens.shape[1] > kv_cache.capacity:
            raise DataError(f"The cache holds {kv_cache.length} of {kv_cache.capacity} positions; make a larger one.")
        hidden = self._evaluate(tokens, kv_cache=kv_cache)
        kv_cache.length += tokens.shape[1]
        last = hidden.reshape(*tokens.shape, -1)[:, -1]  # (B, C)
        return self.logits_of(last)

    @one_thread_at_a_time
    def extend_each(self, tokens, joined) -> np.ndarray:
        """Return the logits of the token after each of R sequences, (R, V).

        tokens: (R, 1), the newest of each. joined: the `JoinedCaches` of the sequences,
        each with room for one more; afterwards they hold the tokens.
        """
        tokens = checked_tokens(tokens, self.config)
        full = next((cache for cache in joined.caches if cache.length == cache.capacity), None)
        if full is not None:
            raise DataError(f"A cache holds {full.capacity} of {full.capacity} positions; make a larger one.")
        hidden = self._evaluate(tokens.reshape(1, -1), kv_cache=joined)  # (R, C)
        for cache in joined.caches:
            cache.length += 1
        return self.logits_of(hidden)

    def _begin(self, *, new_weights: bool = True) -> None:
        """Start another pass: free what an earlier one allocated."""
        self.arena.reset()
        self.scratch.reset()
        if self._lora is not None and new_weights:
            self._lora.merge()
        if self._rounded is not None and new_weights:
            self._rounded.refresh()

    def _context(self, length: int, *, rate=0.0, step=0, first_row=0, starts=None, kv_cache=None) -> Context:
        columns = slice(0, length) if kv_cache is None else kv_cache.columns(length)
        cos, sin = (None, None) if self._rotary is None else (table[columns] for table in self._rotary)
        memory = self.arena.empty, self.scratch
        return Context(self.ops, self.config, *memory, rate, self.seed, step, first_row, cos, sin, starts, kv_cache)

    def _embed(self, context: Context, tokens):
        """Return the embedded tokens, (B, T) -> (B, T, C), and the cache."""
        cache, T, positions = context.kv_cache, tokens.shape[1], None
        if cache is not None:
            positions = cache.positions(T)
        elif context.starts is not None:
            positions = np.arange(T, dtype=np.int32) - context.starts
        x, cache = self.ops.embedding_forward(
            tokens,
            self.views.token_embedding,
            self.views.position_embedding,
            first_position=0 if cache is None else cache.length,
            positions=positions,
            empty=self.arena.empty,
        )
        if context.rate > 0:
            key = context.dropout_key(EMBEDDING_DROPOUT, x[0].size)
            x = self.ops.dropout_forward(x, context.rate, key, empty=self.arena.empty)
        return x, cache

    def _final_norm(self, context: Context, x):
        """Return the normalised rows, (B, T, C) -> (N, C), and the cache."""
        rows = x.reshape(-1, x.shape[-1])
        return norm_forward(context, rows, *self.views.final_norm, empty=context.empty)

    def _forward(self, context: Context, tokens):
        """Return the rows before the head, (N, C), the context and the caches."""
        x, embedding = self._embed(context, tokens)
        blocks = []
        for layer, block in enumerate(self.views.blocks):
            x, cache = block_forward(context, block, x, layer)
            blocks.append(cache)
        hidden, final_norm = self._final_norm(context, x)
        return hidden, context, (embedding, blocks, final_norm)

    def _backward(self, context: Context, dhidden, caches, when_final: Callable[[str], None]) -> None:
        """Add the gradients of all parameters but the head's, for dhidden, (N, C)."""
        embedding, blocks, final_norm = caches
        weights, dweights = self.views, self.dviews
        dx = norm_backward(context, dhidden, final_norm, weights.final_norm.weight, *dweights.final_norm)
        dx = dx.reshape(*embedding.tokens.shape, -1)
        for layer in reversed(range(self.config.n_layer)):
            block, dblock = weights.blocks[layer], dweights.blocks[layer]
            with self.arena.scope():
                dx[...] = block_backward(context, block, dblock, dx, blocks[layer], layer)
            when_final(f"blocks.{layer}")
        if context.rate > 0:
            key = context.dropout_key(EMBEDDING_DROPOUT, dx[0].size)
            dx = self.ops.dropout_backward(dx, context.rate, key, empty=self.arena.empty)
        dtables = dweights.token_embedding, dweights.position_embedding
        self.ops.embedding_backward(dx, embedding, *dtables, empty=self.arena.empty)

    def _evaluate(self, tokens, *, starts=None, kv_cache=None):
        """Return the rows before the head, (N, C), without dropout or caches."""
        # The weights stay the same while a text is generated.
        self._begin(new_weights=kv_cache is None or kv_cache.length == 0)
        context = self._context(tokens.shape[1], starts=starts, kv_cache=kv_cache)
        x, _ = self._embed(context, tokens)
        for layer, block in enumerate(self.views.blocks):
            with self.arena.scope():
                x[...] = block_forward(context, block, x, layer)[0]
        return self._final_norm(context, x)[0]
