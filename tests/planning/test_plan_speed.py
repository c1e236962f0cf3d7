"""The model that measures a machine is small, and like the planned one."""

import threading
from functools import partial
from threading import Barrier

import numba
import pytest

from npllm.model import GPT, ModelConfig
from npllm.model.parameters import parameter_count
from npllm.planning import speed

SMALL = ModelConfig(n_layer=2, n_head=2, n_embd=16, block_size=8, vocab_size=100)
LARGE = ModelConfig(
    n_layer=84, n_head=64, n_kv_head=8, n_embd=8192, block_size=1 << 17, vocab_size=128256,
    norm="rmsnorm", position="rotary", mlp="swiglu", bias=False, tie_embeddings=False,
)  # fmt: skip


def test_a_small_model_is_measured_itself():
    assert speed.cut(SMALL) == ModelConfig(**vars(SMALL) | {"n_kv_head": 2})


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"n_head": 12, "n_kv_head": 3, "n_embd": 768},
        {"n_head": 1, "n_kv_head": 1},
        {"n_head": 5, "n_kv_head": 5, "head_dim": 128, "n_embd": 1000, "n_inner": 3000},
    ],
)
def test_a_large_model_is_cut(changes):
    config = ModelConfig(**vars(LARGE) | changes)
    cut = speed.cut(config)
    assert parameter_count(cut) <= speed.MOST_PARAMETERS
    assert cut.n_embd <= speed.MOST_WIDTH
    assert cut.block_size == speed.MOST_TOKENS
    assert (cut.mlp, cut.norm, cut.position, cut.bias) == ("swiglu", "rmsnorm", "rotary", False)
    assert cut.n_head % cut.n_kv_head == 0
    if config.head_dim:
        assert (cut.head_dim, cut.n_embd, cut.n_inner) == (128, 512, 1536)


@pytest.mark.parametrize(
    ("cores", "threads", "ranks_per_host", "models", "share"),
    [(4, 1, 1, 1, 1.0), (4, 2, 2, 2, 1.0), (4, 8, 1, 1, 1.0), (4, 1, 16, 4, 0.25)],
)
def test_the_rate_is_that_of_one_of_the_ranks(monkeypatch, cores, threads, ranks_per_host, models, share):
    """Each rank computes with a model and threads of its own, while the others do. More
    ranks than cores share what the cores compute. The clock says one second for each
    call."""
    calls, both = [], Barrier(models)

    def compute(model, tokens, targets):
        both.wait(60)  # fails unless all ranks compute at the same time
        calls.append((id(model), numba.get_num_threads(), tokens.shape))

    monkeypatch.setattr(GPT, "loss_and_grad", compute)
    monkeypatch.setattr(numba, "set_num_threads", partial(setattr, local := threading.local(), "n"))
    monkeypatch.setattr(numba, "get_num_threads", lambda: local.n)
    monkeypatch.setattr(numba.config, "NUMBA_NUM_THREADS", cores)
    monkeypatch.setattr(speed, "_seconds", lambda work: (calls.clear(), work(), 1.0)[-1])
    rate = speed.measure_flops(SMALL, 4, "float32", threads, ranks_per_host)
    assert rate == share * SMALL.flops_per_token(8) * 4 * 8
    assert len({model for model, *_ in calls}) == len(calls) == models
    assert {(n, shape) for _, n, shape in calls} == {(min(threads, cores), (4, 8))}


def test_bytes_of_an_addition(monkeypatch):
    monkeypatch.setattr(speed, "ADDED", 1000)
    monkeypatch.setattr(speed, "_seconds", lambda work: (work(), 0.5)[-1])
    assert speed.measure_memory() == 3 * 4000 / 0.5
