"""The memory that a stage is computed to need."""

from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from npllm.errors import ResourceError
from npllm.finetuning.adaptation import AdaptConfig, adapted
from npllm.finetuning.sft import SFTConfig
from npllm.finetuning.stage_run import micro_batch, new_state
from npllm.generation.kv_cache import KVCache
from npllm.model import GPT, ActorCritic, ModelConfig, Storage
from npllm.model.footprint import evaluation_pass, training_pass
from npllm.optim import BatchConfig
from npllm.training.available import Left
from npllm.training.job import Job
from npllm.training.memory import Work, short_training_bytes, stage_memory
from npllm.training.stage import prepare_memory

SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 8, "block_size": 6, "vocab_size": 11}
PLAIN, HEAD = ModelConfig(**SIZES), ModelConfig(**SIZES, n_outputs=1)
WORK = Work(rows=3, width=4, read_rows=2)


def nbytes(*models) -> int:
    return sum(model.params.flat.nbytes for model in models)


def memory_of(model, readers=(), work=WORK):
    return stage_memory(new_state(model, SFTConfig()), list(readers), work)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_models_own_arrays_and_those_of_other_models(dtype):
    """The memory of parameters, gradients and two moments. A checkpoint copies three of
    them: all but the gradients."""
    model, other = GPT(PLAIN, dtype=dtype), GPT(HEAD, dtype=dtype)
    for readers in ([], [other], [other, other]):
        memory = memory_of(model, readers)
        assert memory.weights == nbytes(model, *readers[:1])
        assert (memory.gradients, memory.moments, memory.aside) == (nbytes(model), 2 * nbytes(model), 3 * nbytes(model))


def test_policy_and_critic_share_one_buffer():
    pair, reference = ActorCritic(PLAIN, HEAD), GPT(PLAIN)
    memory = memory_of(pair, [reference])
    assert memory.weights == nbytes(pair, reference)
    assert memory.gradients == nbytes(pair)


def test_frozen_weights_are_counted_once_for_all_that_share_them():
    """The shared memory is the frozen weights, the merged weights and their gradients.

    Each model adds its factors. A checkpoint holds the frozen weights too.
    """
    config, base = AdaptConfig(lora_rank=2), GPT(PLAIN)
    model = adapted(base, config)
    workspace = model._lora.workspace
    with_head = replace(model.config, n_outputs=1)
    sharing = GPT(with_head, storage=Storage(frozen=model.frozen, workspace=workspace))
    memory = memory_of(model, [sharing])
    assert memory.weights == nbytes(model, sharing) + 2 * nbytes(base)
    assert memory.gradients == nbytes(model) + nbytes(base)
    assert memory.moments == 2 * nbytes(model)
    assert memory.aside == 3 * nbytes(model) + nbytes(base)
    alone = GPT(with_head, storage=Storage(frozen=model.frozen))
    assert memory_of(model, [alone]).weights == memory.weights + nbytes(base)  # its own merged weights


def test_what_passes_keep():
    """The passes take: a training pass of policy and of critic, an evaluation pass of
    the readers, copies of hidden rows, and the cached keys and values."""
    pair, reader = ActorCritic(PLAIN, HEAD), GPT(PLAIN)
    work = replace(WORK, policy=True, copies=2, written=(5, 3))
    one_pass = sum(training_pass(PLAIN, 3, 4, "float32", policy=True))
    assert one_pass > sum(evaluation_pass(PLAIN, 5, 3, "float32", policy=True))
    cache = KVCache(pair.policy, 5, capacity=4)
    expected = 2 * one_pass + sum(evaluation_pass(PLAIN, 2, 4, "float32", policy=True)) + 2 * 3 * 4 * 4 * PLAIN.n_embd
    expected += (cache.keys.nbytes + cache.values.nbytes) * 5 // 4
    counted = memory_of(pair, [reader], work).passes
    products = counted - expected
    assert products == memory_of(GPT(PLAIN)).passes - sum(training_pass(PLAIN, 3, 4, "float32"))
    assert memory_of(pair, [reader], replace(work, temporaries=10**6)).passes == counted + 10**6 - 2 * 3 * 4 * 4 * 8


def test_a_further_training_is_what_a_stage_takes_but_for_its_program_and_checkpoints():
    for lora_rank in (0, 2):
        model = adapted(GPT(PLAIN), AdaptConfig(lora_rank=lora_rank))
        memory = memory_of(model)
        expected = memory.total - memory.program - memory.aside
        assert short_training_bytes(model.config, "float32", SFTConfig().optim, WORK) == expected


def test_a_micro_batch_is_no_larger_than_the_batch():
    assert micro_batch(SFTConfig(batch=BatchConfig(size=8, micro_size=3))) == 3
    assert micro_batch(SFTConfig(batch=BatchConfig(size=2))) == 2


def test_a_stage_is_refused_before_its_first_pass(monkeypatch):
    model, refused = GPT(PLAIN), pytest.raises(ResourceError, match="lower batch.micro_size")
    monkeypatch.setattr("npllm.training.memory.memory_left", lambda root: Left(0, "nothing is left"))
    config = SFTConfig(batch=BatchConfig(size=8))
    state = new_state(model, config)
    job = Job(state=state, gradients=None, validate=None, work=replace(WORK, aside=10**9))
    with refused:
        prepare_memory(None, config, job, Console(quiet=True))
    assert model.arena.peak == 0
    assert np.all(model.grads.flat == 0.0)
