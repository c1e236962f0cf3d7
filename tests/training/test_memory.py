"""The computed memory of pretraining is what it takes; less memory is refused."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_runs import ENVIRONMENT, pretrain_arguments, write_text

from npllm.errors import ResourceError
from npllm.model import Architecture
from npllm.optim import BatchConfig, OptimConfig
from npllm.training import memory as memory_module
from npllm.training.config import RunConfig, TrainConfig
from npllm.training.evaluation import quick_loss
from npllm.training.length import Phase
from npllm.training.loop import NextTokenGradients, build_state, make_update
from npllm.training.memory import (
    Memory,
    check_memory,
    pass_of,
    pretraining_memory,
    pretraining_work,
    require_pretraining_memory,
    reserve_arenas,
    stage_memory,
    update_scratch_bytes,
)
from npllm.training.warmup import kind_of, load_kernels

TOKENS = np.zeros(2000, np.uint16)
MODEL = Architecture(n_layer=2, n_head=2, n_embd=16, block_size=32, position="rotary", qk_norm=True)


def config_of(dtype="float32", optimizer="adamw", model=MODEL, steps=5, **batch) -> RunConfig:
    batch = BatchConfig(**({"size": 8, "micro_size": 4} | batch))
    optim = OptimConfig(name=optimizer)
    return RunConfig(model=model, batch=batch, optim=optim, train=TrainConfig(dtype=dtype, steps=steps))


@pytest.mark.parametrize("optimizer", ["muon", "sgd"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bf16"])
@pytest.mark.parametrize("micro_size", [2, 20])  # validation takes 16 rows at once
def test_every_part_is_what_is_allocated(monkeypatch, dtype, optimizer, micro_size):
    """A float64 counted as a float32, or a moment that does not exist, would show."""
    monkeypatch.setattr(memory_module, "product_scratch_bytes", lambda *_: 0)
    monkeypatch.setattr(memory_module, "find_spec", lambda name: None)
    monkeypatch.setattr(memory_module, "GENERATION", 0)
    config = config_of(dtype, optimizer, size=24, micro_size=micro_size)
    memory = pretraining_memory(config, 300, val_bytes=0)
    state = build_state(config, 300)
    model = state.model
    reserve_arenas(model, pretraining_work(config, 300, 0))
    make_update(state, config, NextTokenGradients(config, TOKENS), Phase(0, config.train.steps))
    quick_loss(model, TOKENS)
    kept = [*model._rotary, *(model._rounded._rounded.values() if model._rounded else ())]
    assert memory.weights == model.params.flat.nbytes + sum(array.nbytes for array in kept)
    assert len(model.grads._spares) == {2: 3, 20: 1}[micro_size]  # for 12 and 2 micro-batches
    assert memory.gradients == model.grads.flat.nbytes * (1 + len(model.grads._spares))
    assert memory.moments == sum(array.nbytes for array in state.optimizer.state.values())
    sample = memory_module.cache_bytes(model.config, 1, config.model.block_size, dtype)
    assert memory.passes == model.arena.peak + model.scratch.peak + sample
    assert [len(arena._chunks) for arena in (model.arena, model.scratch)] == [1, 1]
    assert memory.aside == sum(array.nbytes for array in state.arrays().values())  # the image of a checkpoint


def test_what_an_update_of_muon_takes_is_counted():
    """Where a pass has few rows, the scratch of an update is the larger one."""
    config = config_of("float32", "muon", size=1, micro_size=1)
    config = replace(config, model=replace(config.model, n_embd=128, block_size=2))
    state = build_state(config, 300)
    work = replace(pretraining_work(config, 300, 0), update=update_scratch_bytes(state.optimizer))
    assert work.update > pass_of(state.model.config, "float32", replace(work, update=0)).scratch
    reserve_arenas(state.model, work)
    make_update(state, config, NextTokenGradients(config, TOKENS), Phase(0, config.train.steps))
    assert state.model.scratch.peak == work.update == pass_of(state.model.config, "float32", work).scratch
    assert stage_memory(state, [], work).passes > stage_memory(state, [], replace(work, update=0)).passes


def test_the_report_may_take_more_than_a_checkpoint(monkeypatch):
    monkeypatch.setattr(memory_module, "find_spec", lambda name: "it is there")
    small = pretraining_memory(config_of(), 300, val_bytes=10)
    assert small.aside == memory_module.PLOT
    large = pretraining_memory(config_of(), 300, val_bytes=10**8)
    assert large.aside == 12 * 10**8


def test_the_largest_micro_batch_counts():
    """A larger batch takes no more. With a ramp, its largest micro-batch counts."""
    ramp = {"ramp_start": 1, "ramp_steps": 100, "micro_size": 64}
    micro_batch, larger_batch, ended, without_end, whole, begun = (
        pretraining_memory(config_of(**({"size": 64} | changes)), 300, 0).passes
        for changes in ({"size": 8}, {}, ramp | {"steps": 200}, ramp | {"steps": None}, {"micro_size": 64}, ramp)
    )
    assert micro_batch == larger_batch < whole == ended == without_end
    assert begun < whole


def system(folder: Path, limit: int, used: int, pages: int) -> Path:
    """The files of a machine with much memory and a cgroup with little."""
    files = {
        "proc/meminfo": "MemAvailable: 900000000 kB\n",
        "proc/self/cgroup": "0::/\n",
        "proc/self/statm": f"{pages} {pages} 0 0 0 {pages} 0\n",
        "sys/fs/cgroup/memory.max": f"{limit}\n",
        "sys/fs/cgroup/memory.current": f"{used}\n",
    }
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_refused_where_one_byte_is_missing(tmp_path):
    """The memory that the process has already is part of what it needs."""
    page = os.sysconf("SC_PAGE_SIZE")
    memory = Memory(program=3 * page, weights=1000, gradients=200, moments=30, passes=4, aside=5)
    used, own = 10 * page, 3 * page
    limit = memory.total - own + used
    check_memory(memory, system(tmp_path, limit, used, pages=3))
    with pytest.raises(ResourceError, match=r"needs 0 MB of memory, but 0 MB are there \(memory.max of the cgroup"):
        check_memory(memory, system(tmp_path, limit - 1, used, pages=3))


def test_refused_before_anything_is_allocated(monkeypatch):
    """These weights would take four billion bytes if they were allocated."""
    monkeypatch.setattr(memory_module, "load_kernels", lambda *_: None)
    monkeypatch.setattr("npllm.model.transformer.Parameters", None)
    with pytest.raises(ResourceError, match=r"Training needs [\d,]+\.\d GB of memory"):
        require_pretraining_memory(config_of(model=Architecture(n_layer=1000, n_embd=65536)), 300, 0)


def test_a_training_calls_no_kernel_that_was_not_loaded():
    """Otherwise the figure would lack the kernel's memory, and the first step would
    wait for the compiler."""
    config = config_of()
    load_kernels(kind_of(config.model, "float32", config.optim))
    before = compiled()
    state = build_state(config, 300)
    make_update(state, config, NextTokenGradients(config, TOKENS), Phase(0, config.train.steps))
    quick_loss(state.model, TOKENS)
    assert compiled() == before


def compiled() -> set:
    from numba.core.dispatcher import Dispatcher

    modules = [module for name, module in sys.modules.items() if name.startswith("npllm.kernels")]
    kernels = {kernel for module in modules for kernel in vars(module).values() if isinstance(kernel, Dispatcher)}
    return {(kernel.py_func.__qualname__, signature) for kernel in kernels for signature in kernel.signatures}


PROGRAM = """
import sys
from npllm.cli import main
from npllm.training import results
from npllm.training.available import peak_memory
results.SAMPLE_TOKENS = 2
assert main(sys.argv[1:]) == 0
print("peak", peak_memory())
"""


def test_the_announced_figure_is_the_peak_of_the_process(tmp_path):
    """This holds whether the kernels are compiled or read from the disk."""
    text, sizes = write_text(tmp_path, 300), {"model__n_embd": 128, "model__n_layer": 2, "model__block_size": 64}
    batch = {"batch__size": 48, "batch__micro_size": 48, "train__steps": 1}
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, *pretrain_arguments(text, tmp_path / "run", **sizes, **batch)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    announced = 1e6 * float(re.search(r"([\d,]+) MB of memory", process.stdout)[1])
    peak = int(process.stdout.split()[-1])
    assert announced == pytest.approx(peak, rel=0.15)
