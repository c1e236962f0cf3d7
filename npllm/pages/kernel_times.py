"""How long each kernel of a training step takes, and what the backward keeps.

A step is run with the batch that the model is trained with. Its kernels are timed one
by one. A kernel that is limited by arithmetic is compared with the fastest matrix
product that was measured, in the step or of two large matrices, and one that is limited
by memory with the copy of a large array. Arrays of a few megabytes stay in the caches
of the processor, so a kernel can be faster than such a copy.
"""

from collections.abc import Iterator
from dataclasses import replace
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from npllm.model import GPT, Trace
from npllm.model.block import BlockCache
from npllm.model.recording import Call, Tape, operations_of_calls

REPEATS = 6  # of the step; the first one compiles
LARGE_MATRIX, LARGE_ARRAY = 1024, 1 << 24  # rows and columns; float32 numbers, 64 MB
# The operation whose backward reads a field of a block's cache.
READ_BY = {
    "x": "norm_1",
    "qk_norm": "attention.qk_norm",
    "attention": "attention",
    "attended": "attention.out",
    "norm_2": "norm_2",
    "normed_2": "mlp.up",
    "up": "mlp.up",
    "gate": "mlp.gate",
}


class Limits(NamedTuple):
    """What this machine reaches, per second: in a matrix product, and in a copy."""

    flops: float
    bytes: float


class Timing(NamedTuple):
    """One kernel. flops: of its matrix products. bytes: that it reads and writes, each
    array once. seconds: of the fastest of several calls."""

    seconds: float
    flops: float
    bytes: int

    def share(self, limits: Limits) -> float:
        """Return its speed as share of what the machine reaches."""
        return self.flops / self.seconds / limits.flops if self.flops else self.bytes / self.seconds / limits.bytes


class Kept(NamedTuple):
    """An array that is kept for the backward."""

    name: str
    shape: tuple[int, ...]
    bytes: int


class StepProfile(NamedTuple):
    """A training step of (rows, length) tokens, by the name of the operation.

    forward, backward: a Timing of each. The head's two directions are one kernel, which
    counts as its forward. again: of what the backward computes again. kept: what the
    operation's backward reads; an array that several read stands at the first one.
    """

    rows: int
    length: int
    limits: Limits
    forward: dict[str, Timing]
    backward: dict[str, Timing]
    again: dict[str, Timing]
    kept: dict[str, list[Kept]]


def profile_step(model: GPT, rows: int, length: int) -> StepProfile:
    """Run and time training steps of a model of this shape, with random weights."""
    config = replace(model.config.language_model, dropout=0.0)
    twin = GPT(config, dtype=model.dtype_name)
    tokens = np.arange(rows * length, dtype=np.int32).reshape(rows, length) % config.vocab_size
    ops, passes = twin.ops, []
    for _ in range(REPEATS):
        twin.ops = tape = Tape(ops)
        twin.loss_and_grad(tokens, tokens)
        passes.append(operations_of_calls(tape.calls, twin.views))
    timings: dict[str, dict[str, Timing]] = {"forward": {}, "backward": {}, "again": {}}
    for name in passes[0]:
        for part, calls in _calls_of_parts([each[name] for each in passes[1:]]):
            if calls:
                seconds = min(call.seconds for call in calls)
                timings[part][name] = Timing(seconds, flops_of(calls[0]), bytes_of(calls[0]))
    twin.ops = ops
    limits = machine_limits(twin.dtype.name)
    fastest = max(timing.flops / timing.seconds for part in timings.values() for timing in part.values())
    limits = limits._replace(flops=max(limits.flops, fastest))
    return StepProfile(rows, length, limits, **timings, kept=kept_arrays(twin.trace(tokens)))


def _calls_of_parts(operations: list) -> Iterator[tuple[str, list[Call]]]:
    """Yield each part of an operation, and the calls of it in several passes."""
    yield "forward", [each.forward for each in operations]
    yield "backward", [each.backward for each in operations if each.backward is not None]
    yield "again", [each.again[0] for each in operations if each.again]


def machine_limits(dtype: str = "float32") -> Limits:
    """Measure the speed of a product of large matrices and of a large copy."""
    source = np.ones(LARGE_ARRAY, np.float32)
    copy = np.empty_like(source)
    move = _fastest(lambda: np.copyto(copy, source))
    return Limits(product_peak(dtype), 2.0 * source.nbytes / move)


def product_peak(dtype: str) -> float:
    """Measure the operations per second of a product of two large matrices."""
    from npllm.kernels.gemm import matmul

    a = np.ones((LARGE_MATRIX, LARGE_MATRIX), dtype)
    product = np.empty_like(a)
    return 2.0 * LARGE_MATRIX**3 / _fastest(lambda: matmul(a, a, product))


def _fastest(action) -> float:
    seconds = []
    for _ in range(REPEATS):
        start = perf_counter()
        action()
        seconds.append(perf_counter() - start)
    return min(seconds)


def flops_of(call: Call) -> float:
    """Return the floating-point operations of the matrix products of a call; 0 = none.

    A product of (N, K) and (K, M) takes 2·N·K·M. Attention is causal: a position
    multiplies with (T+1)/2 keys on average. Its backward has five products where the
    forward has two, because the kernel computes the scores again.
    """
    arguments = call.arguments
    if call.kind == "linear":
        n_in, n_out = arguments["weight"].shape
        return 2.0 * len(arguments["x"]) * n_in * n_out * (1 if call.is_forward else 2)
    if call.kind == "attention":
        y = call.results[0] if call.is_forward else arguments["dy"]
        B, T, width = y.shape  # width: H·D
        return 2.0 * B * width * T * (T + 1) / 2 * (2 if call.is_forward else 5)
    if call.kind == "lm_head_loss":
        x = arguments["x"] if "x" in arguments else arguments["cache"].x
        products = {"forward": 1, "backward": 3, "grad": 3}[call.function.rsplit("_", 1)[1]]
        return 2.0 * x.size * len(arguments["weight"]) * products
    return 0.0


def bytes_of(call: Call) -> int:
    """Return the bytes of all arrays that a call reads and writes, each once."""
    sizes = {}
    for array in arrays_in([call.arguments, call.results, call.added]):
        sizes[array.__array_interface__["data"][0]] = array.nbytes
    looked_up = call.arguments.get("token_embedding")
    if looked_up is not None:  # of a table only the rows in use are read
        return 2 * call.results[0].nbytes
    return sum(sizes.values())


def arrays_in(value: Any) -> Iterator[np.ndarray]:
    """Yield all arrays in nested tuples, lists and dicts."""
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, dict):
        yield from arrays_in(list(value.values()))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from arrays_in(part)


def kept_arrays(trace: Trace) -> dict[str, list[Kept]]:
    """Return what a forward keeps for its backward, by the operation that reads it."""
    embedding, blocks, final_norm = trace.caches
    found = [("embedding", "", embedding)]
    for layer, block in enumerate(blocks):
        fields = zip(BlockCache._fields, block, strict=True)
        found += [(f"blocks.{layer}.{READ_BY[field]}", field, value) for field, value in fields]
    found += [("final_norm", "", final_norm), ("loss", "hidden", trace.hidden)]
    seen: set[int] = set()
    kept: dict[str, list[Kept]] = {}
    for operation, field, value in found:
        for name, array in _named_arrays(field, value):
            address = array.__array_interface__["data"][0]
            if array.size and address not in seen:
                seen.add(address)
                kept.setdefault(operation, []).append(Kept(name, array.shape, array.nbytes))
    return kept


def _named_arrays(name: str, value: Any) -> Iterator[tuple[str, np.ndarray]]:
    if isinstance(value, np.ndarray):
        yield name, value
    elif hasattr(value, "_fields"):
        for field in value._fields:
            yield from _named_arrays(f"{name}.{field}".lstrip("."), getattr(value, field))
