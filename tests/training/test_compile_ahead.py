"""The two processes that compile the kernels while the text is prepared."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from numba import config
from rich.console import Console

from npllm.kernels import compiled_cache
from npllm.model import Architecture
from npllm.optim import OptimConfig
from npllm.training import compile_ahead
from npllm.training.available import Left
from npllm.training.compile_ahead import compiling_ahead
from npllm.training.warmup import kind_of

ROOT = Path(__file__).parents[2]
GPT2 = Architecture(n_layer=1, n_head=4, n_embd=64, block_size=64, dropout=0.1)
LLAMA = Architecture(
    n_layer=1, n_head=4, n_embd=64, block_size=64,
    norm="rmsnorm", position="rotary", mlp="swiglu", bias=False, tie_embeddings=False, qk_norm=True,
)  # fmt: skip
KIND = kind_of(GPT2, "float32", OptimConfig())

# Prints each kernel that a function calls, with the types of the arguments. The kernels
# only fill their arrays with zeros, so nothing is compiled.
PROGRAM = """
import sys
from itertools import product
import numpy as np
from numba import typeof
from numba.core.dispatcher import Dispatcher
from npllm.training import compile_ahead, warmup
from test_compile_ahead import GPT2, LLAMA, OptimConfig

def record(kernel, *arguments, **none):
    print(kernel.py_func.__module__, kernel.__name__, *map(typeof, arguments), sep="|")
    for array in arguments:
        if isinstance(array, np.ndarray) and array.dtype.kind == "f":
            array.fill(0.0)
    return lambda *arguments: True

Dispatcher._compile_for_args = record
function = {"whole": warmup.load_kernels, **compile_ahead.PARTS}[sys.argv[1]]
for architecture, dtype, name in product((GPT2, LLAMA), ("float32", "float64"), ("muon", "sgd")):
    also = dict.fromkeys(("policy", "generates"), name == "muon")
    function(warmup.kind_of(architecture, dtype, OptimConfig(name=name), **also))
"""


def kernels_of(part: str) -> set[str]:
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, part],
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return set(process.stdout.splitlines())


@pytest.mark.skipif(config.DISABLE_JIT, reason="nothing is compiled")
def test_the_parts_are_all_kernels_and_share_none():
    """A kernel that no part calls would be compiled later. One in both parts would be
    compiled twice, and the two processes would write the same file."""
    attention, rest = kernels_of("attention"), kernels_of("all others")
    assert attention
    assert not attention & rest
    assert kernels_of("whole") == attention | rest


@pytest.fixture
def children(monkeypatch):
    """An empty cache, and processes that wait for their parent instead of compiling."""
    started = []

    def start(part, kinds):
        program = "import sys; sys.stdin.read()"
        started.append(subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, start_new_session=True))
        return started[-1]

    monkeypatch.setattr(compile_ahead, "cache_is_empty", lambda: True)
    monkeypatch.setattr(compile_ahead, "memory_left", lambda: Left(4 << 30, "a large machine"))
    monkeypatch.setattr(compile_ahead, "_start", start)
    return started


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_error_ends_the_processes(children, error):
    with pytest.raises(error), compiling_ahead([KIND], Console(quiet=True)):
        raise error
    assert [child.returncode for child in children] == [-signal.SIGKILL] * 2


def test_a_process_that_dies_is_no_error(children, capsys):
    with compiling_ahead([KIND], Console()):
        for child in children:
            child.kill()
    assert [child.returncode for child in children] == [-signal.SIGKILL] * 2
    assert capsys.readouterr().out.startswith("compiling kernels in 2 processes")


def test_where_no_process_can_be_started_nothing_is_announced(children, monkeypatch, capsys):
    def fail(part, kinds):
        raise BlockingIOError

    monkeypatch.setattr(compile_ahead, "_start", fail)
    with compiling_ahead([KIND], Console()):
        pass
    assert not children
    assert capsys.readouterr().out == ""


def test_without_memory_for_them_no_process_starts(children, monkeypatch):
    """In a small container, two more processes would get the main process killed."""
    monkeypatch.setattr(compile_ahead, "memory_left", lambda: Left(500 << 20, "a container"))
    with compiling_ahead([KIND], Console(quiet=True)):
        pass
    assert not children


def test_a_process_ends_when_its_parent_is_gone(monkeypatch):
    """A killed parent cannot end the process. The system closes the parent's pipe."""
    child = compile_ahead._start("all others", [KIND])
    child.stdin.close()
    assert child.wait() == 1


@pytest.mark.skipif(config.DISABLE_JIT, reason="nothing is compiled")
def test_a_cache_with_attention_is_not_empty(monkeypatch, tmp_path):
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))
    assert compile_ahead.cache_is_empty()
    folder = compiled_cache.folders()[0]
    folder.mkdir(exist_ok=True)
    kernel = compile_ahead.attention._backward
    (folder / f"npllm.kernels.attention._backward-{kernel.py_func.__code__.co_firstlineno}-0123").touch()
    assert not compile_ahead.cache_is_empty()
    monkeypatch.setattr(compile_ahead.attention, "_backward", lambda: None)  # as with NUMBA_DISABLE_JIT=1
    assert not compile_ahead.cache_is_empty()
