"""After `npllm warmup` no kernel is left to be compiled."""

import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest

from npllm.model import Architecture
from npllm.optim import OptimConfig
from npllm.training.warmup import kind_of

ROOT = Path(__file__).parents[2]

PROGRAM = """
import sys
from numba.core.dispatcher import Dispatcher
from npllm.cli import main

def compiled():
    modules = [module for name, module in sys.modules.items() if name.startswith("npllm.kernels")]
    kernels = {kernel for module in modules for kernel in vars(module).values() if isinstance(kernel, Dispatcher)}
    return {(kernel.py_func.__qualname__, signature) for kernel in kernels for signature in kernel.signatures}

assert main(["warmup"]) == 0
before = compiled()
assert len(before) > 30
run, *models = sys.argv[1:]
small = ["--train.steps", "2", "--batch.size", "8", "--batch.micro_size", "4", "--model.n_embd", "32"]
data = ["--data.source", "pydoc", "--data.vocab_size", "300"]
for number, model in enumerate(models):
    assert main(["pretrain", *data, *small, *model.split(), "--out", f"{run}{number}"]) == 0
    assert main(["generate", f"{run}{number}", "--max-tokens", "20"]) == 0
    assert main(["generate", f"{run}{number}", "--max-tokens", "20", "--dtype", "bf16"]) == 0
    assert main(["evaluate", f"{run}{number}"]) == 0
print("compiled since:", sorted(map(str, compiled() - before)))
"""


@pytest.mark.long
def test_nothing_is_left_to_compile(tmp_path):
    gpt2 = "--model.norm layernorm --model.position learned --model.mlp gelu --model.dropout 0.1 --optim.name sgd"
    relu2 = "--model.mlp relu2 --optim.name muon"
    llama = "--model.norm rmsnorm --model.position rotary --model.mlp swiglu --model.n_kv_head 2"
    qwen = "--model.norm rmsnorm --model.qk_norm True"
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "run"), gpt2, relu2, llama, qwen],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.stdout.splitlines()[-1:] == ["compiled since: []"], process.stdout + process.stderr


def test_every_choice_of_a_model_makes_another_kind():
    """A choice that the kind forgets leaves its kernels to the first step."""
    other = {"norm": "rmsnorm", "position": "rotary", "qk_norm": True, "mlp": "swiglu"}
    other |= {"bias": False, "tie_embeddings": False, "dropout": 0.1}
    numbers = {"n_layer", "n_head", "n_kv_head", "head_dim", "n_embd", "n_inner", "block_size"}
    numbers |= {"norm_eps", "rope_theta"}
    assert {field.name for field in fields(Architecture)} == numbers | other.keys()
    plain = kind_of(Architecture(), "float32", OptimConfig())
    for name, value in other.items():
        assert kind_of(replace(Architecture(), **{name: value}), "float32", OptimConfig()) != plain, name
