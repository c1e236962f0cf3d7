"""How fast a rank of this machine computes, measured on a small model.

The model is that of the config, cut to few layers, a moderate width and a moderate
vocabulary: a large model computes at least at that rate, and no plan allocates it.
"""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from statistics import median

import numba
import numpy as np

from npllm.model import GPT, ModelConfig
from npllm.model.parameters import parameter_count

MOST_WIDTH, MOST_TOKENS, MOST_VOCABULARY = 512, 2048, 4096
MOST_PARAMETERS = 1 << 23
ROUNDS = 3  # of which the median counts
ADDED = 1 << 23  # float32 numbers: more than any cache holds
PASSES = 3  # over memory, of an addition in place


class Probe:
    """Forward and backward of a micro-batch of a cut model, on several ranks at once.

    Threads of Python stand for the ranks. Kernels run without its lock, and each has a
    model and a team of threads of its own, as a rank has.

    config: of the planned model. rows: of a rank's micro-batch; one of very many tokens
    is cut, too. threads: of a rank. flops: the operations of one call on all ranks.
    """

    def __init__(self, config: ModelConfig, rows: int, dtype: str, threads: int, ranks: int):
        config = cut(config)
        shape = max(1, min(rows, MOST_TOKENS // config.block_size)), config.block_size
        self.flops = ranks * config.flops_per_token(shape[1]) * shape[0] * shape[1]
        self._tokens = np.random.default_rng(0).integers(0, config.vocab_size, shape).astype(np.int32)
        self._models = [GPT(config, dtype=dtype) for _ in range(ranks)]
        self._team = ThreadPoolExecutor(ranks, initializer=numba.set_num_threads, initargs=(threads,))
        self()  # compiles

    def __call__(self) -> None:
        list(self._team.map(lambda model: model.loss_and_grad(self._tokens, self._tokens), self._models))


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

    threads: of a rank. A host with more ranks than this machine has room for divides
    what this machine computes.
    """
    cores = numba.config.NUMBA_NUM_THREADS
    threads = min(threads, cores)
    probe = Probe(config, rows, dtype, threads, min(ranks_per_host, cores // threads))
    return probe.flops / _seconds(probe) / ranks_per_host


def measure_memory() -> float:
    """Return the bytes per second at which a rank adds arrays, as the sums of
    micro-batches are added: by NumPy, in one thread."""
    total, added = np.zeros((2, ADDED), np.float32)
    return PASSES * total.nbytes / _seconds(lambda: np.add(total, added, out=total))


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
