"""How fast a rank of this machine computes, measured on a small model.

The model is that of the config, cut to few layers, a moderate width and a moderate
vocabulary: a large model computes at least at that rate, and no plan allocates it.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from statistics import median

import numba
import numpy as np

from npllm.model import GPT, ModelConfig
from npllm.model.parameters import parameter_count
from npllm.planning.cost_model import Speed

MOST_WIDTH, MOST_TOKENS, MOST_VOCABULARY = 512, 2048, 4096
MOST_PARAMETERS = 1 << 23
ROUNDS = 3  # of which the median counts
ADDED = 1 << 23  # float32 numbers: more than any cache holds
PASSES = 3  # over memory, of an addition in place


class Probe:
    """Forward and backward of a micro-batch of a cut model.

    config: of the planned model. rows: of the micro-batch; a batch of very many tokens
    is cut, too. flops: the operations of one call.
    """

    def __init__(self, config: ModelConfig, rows: int, dtype: str):
        config = cut(config)
        shape = max(1, min(rows, MOST_TOKENS // config.block_size)), config.block_size
        self.flops = config.flops_per_token(shape[1]) * shape[0] * shape[1]
        self._model = GPT(config, dtype=dtype)
        self._tokens = np.random.default_rng(0).integers(0, config.vocab_size, shape).astype(np.int32)
        self()  # compiles

    def __call__(self) -> None:
        self._model.loss_and_grad(self._tokens, self._tokens)


def cut(config: ModelConfig) -> ModelConfig:
    """Return a config with the kinds of layers of another one, of at most
    MOST_PARAMETERS parameters or with one layer."""
    head, head_dim = min(config.head_width, MOST_WIDTH), config.head_dim
    heads = max(1, min(config.n_head, MOST_WIDTH // head))
    width = heads * head if head_dim is None else min(config.n_embd, MOST_WIDTH)
    config = replace(
        config,
        n_head=heads,
        n_kv_head=max(each for each in range(1, heads + 1) if heads % each == 0 and each <= config.kv_heads),
        head_dim=None if head_dim is None else head,
        n_embd=width,
        n_inner=None if config.n_inner is None else max(1, config.n_inner * width // config.n_embd),
        block_size=min(config.block_size, MOST_TOKENS),
        vocab_size=min(config.vocab_size, MOST_VOCABULARY),
    )
    while config.n_layer > 1 and parameter_count(config) > MOST_PARAMETERS:
        config = replace(config, n_layer=config.n_layer - 1)
    return config


def measure_flops(config: ModelConfig, rows: int, dtype: str, threads: int, ranks_per_host: int) -> float:
    """Return the operations per second of a rank, while all ranks of its host compute.

    One process with the threads of all of them, and with as many rows, stands for
    them. threads: of a rank.
    """
    with threads_of(threads * ranks_per_host):
        probe = Probe(config, rows * ranks_per_host, dtype)
        return probe.flops / _seconds(probe) / ranks_per_host


def measure_memory() -> float:
    """Return the bytes per second at which a rank adds arrays, as the sums of
    micro-batches are added: by NumPy, in one thread."""
    total, added = np.zeros((2, ADDED), np.float32)
    return PASSES * total.nbytes / _seconds(lambda: np.add(total, added, out=total))


def measure_speed(config: ModelConfig, rows: int, dtype: str, threads: int, ranks_per_host: int) -> Speed:
    """Return both. See `measure_flops`."""
    return Speed(measure_flops(config, rows, dtype, threads, ranks_per_host), measure_memory())


def _seconds(work) -> float:
    seconds = []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return median(seconds[1:])


@contextmanager
def threads_of(n: int) -> Iterator[None]:
    """In the block kernels have n threads, or as many as the machine offers."""
    before = numba.get_num_threads()
    numba.set_num_threads(min(n, numba.config.NUMBA_NUM_THREADS))
    try:
        yield
    finally:
        numba.set_num_threads(before)
