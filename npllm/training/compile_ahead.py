"""Compiling the kernels in two processes, while this one reads the text.

Numba compiles one kernel at a time in a process, so it takes processes to use several
cores. Each of them compiles the kernels of one of two parts, which take equally long
and have no kernel in common, and leaves them on the disk (kernels/compiled_cache.py):

    attention   attention; of a kind that generates, also its cached form, and the
                products of a few rows
    all others  one training step of a tiny model, with NumPy's attention

A training that generates at its end only leaves the kernels of generation out: they
are compiled there, so that the first step need not wait for them. Whatever a process
fails to compile, this one compiles when it first calls it.
"""

import gc
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from rich.console import Console

from npllm import kernels
from npllm.kernels import attention
from npllm.kernels.compiled_cache import is_lacking
from npllm.model import GPT, ModelConfig
from npllm.model.backends import operations_of
from npllm.training.available import memory_left
from npllm.training.warmup import Kind, train_once

PROCESS = 400 << 20  # bytes: the most that one of them takes


@contextmanager
def compiling_ahead(kinds: Sequence[Kind], console: Console) -> Iterator[None]:
    """Inside, two processes compile the kernels of these kinds of training, where the
    cache has none and there is memory for both. They have ended when the context is
    left, whether by an error or not."""
    children: list[subprocess.Popen] = []
    try:
        if cache_is_empty() and memory_left().n_bytes > len(PARTS) * PROCESS:
            for part in PARTS:
                with suppress(OSError):  # no process can be started here: this one compiles alone
                    children.append(_start(part, kinds))
        if children:
            console.print(
                f"compiling kernels in {len(children)} processes ({', '.join(PARTS)}), kept for later runs: "
                "usually half a minute for a kind of model",
                soft_wrap=True,
            )
        yield
        for child in children:
            child.wait()
    finally:
        for child in children:
            child.kill()  # the cache gets whole files only, so nothing is left half written
        for child in children:
            child.wait()
            child.stdin.close()


def cache_is_empty() -> bool:
    """Whether attention's backward could be kept, and is not. That is one of the two
    kernels that take longest to compile."""
    return is_lacking(attention._backward)


def _start(part: str, kinds: Sequence[Kind]) -> subprocess.Popen:
    """A process that compiles one part. In a session of its own, it does not get the
    Ctrl-C of the terminal."""
    arguments = json.dumps([kind._replace(config=asdict(kind.config)) for kind in kinds])
    package = str(Path(__file__).parents[2])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "npllm.training.compile_ahead", part, arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        start_new_session=True,
    )


def compile_attention(kind: Kind) -> None:
    """Call what `compile_rest` leaves out."""
    H, K = kind.config.n_head, kind.config.kv_heads
    dtype = np.dtype("float32" if kind.dtype == "bf16" else kind.dtype)
    qkv = np.zeros((1, 64, (H + 2 * K) * kind.config.head_width), dtype)
    y, cache = kernels.attention_forward(qkv, H, K)
    kernels.attention_backward(y, cache, H, K)
    if kind.generates:
        compile_generation(kind.config, qkv)


def compile_generation(config: ModelConfig, qkv: np.ndarray) -> None:
    """Call the kernels that only generation uses. qkv: (1, 64, (H+2K)·D)."""
    H, K, C, dtype = config.n_head, config.kv_heads, config.n_embd, qkv.dtype
    keys, values = np.zeros((2, 1, K, 64, config.head_width), dtype)
    for T in (1, 64):  # the second is large enough to be split between threads
        kernels.cached_attention_forward(qkv[:, :T], keys, values, 0, H, K)
    row, weight = np.zeros((1, C), dtype), np.zeros((C, C), dtype)
    kernels.linear_forward(row, weight)
    kernels.linear_forward(row, weight.T)


def compile_rest(kind: Kind) -> None:
    """Train a model whose attention is NumPy's."""
    model = GPT(kind.config, dtype=kind.dtype)
    book = operations_of("reference")
    numpy_attention = {name: getattr(book, name) for name in ("attention_forward", "attention_backward")}
    model.ops = SimpleNamespace(**(vars(kernels) | numpy_attention))
    train_once(model, kind)


PARTS = {"attention": compile_attention, "all others": compile_rest}


def _main(part: str, arguments: str) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    gc.disable()  # compiling makes millions of objects: a seventh of the time goes into looking for cycles
    for config, *others in json.loads(arguments):
        PARTS[part](Kind(ModelConfig(**config), *others))


def _end_with_parent() -> None:
    """Its end of the pipe is closed when the parent is gone, even where it was
    killed."""
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    _main(*sys.argv[1:])
