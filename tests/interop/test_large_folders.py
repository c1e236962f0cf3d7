"""Folders of Hugging Face that take much memory: an import has a model there once."""

import json
import subprocess
import sys
from math import prod
from pathlib import Path

import numpy as np
import pytest
from small_runs import ENVIRONMENT, run, write_text
from stage_runs import stage_arguments, write_jsonl

from npllm.interop.families import config_of, state_dict
from npllm.model.parameters import parameter_shapes
from npllm.tokenizer import Tokenizer
from npllm.tokenizer.byte_table import ID_TO_BYTE
from npllm.tokenizer.vocabulary import Vocabulary

safetensors = pytest.importorskip("safetensors.numpy")
ml_dtypes = pytest.importorskip("ml_dtypes")

END = "<|endoftext|>"
GPT2 = {"n_layer": 12, "n_head": 12, "n_embd": 768, "n_positions": 1024, "vocab_size": 50257}
WIDE = {"n_layer": 1, "n_head": 8, "n_embd": 1024, "n_positions": 64, "vocab_size": 300}
# The first loading brings what is compiled and imported late into memory.
MEASURE = """
import sys
import npllm
from npllm.training.available import peak_memory, resident_memory
small, large = sys.argv[1:]
npllm.save(*npllm.load(small), small + "-saved")
before = resident_memory()
model, tokenizer = npllm.load(large)
npllm.save(model, tokenizer, large + "-saved")
print((peak_memory() - before) / model.params.flat.nbytes)
"""


def vocabulary(size: int) -> Vocabulary:
    """As many tokens as asked for: bytes, pairs of bytes, and the end of a text."""
    tokens = [bytes([byte]) for byte in ID_TO_BYTE]
    merges = [divmod(pair, 256) for pair in range(size - 257)]
    tokens += [tokens[left] + tokens[right] for left, right in merges]
    return Vocabulary((*tokens, END.encode()), {END: size - 1}, merges=tuple(merges))


def write_gpt2(folder: Path, sizes: dict[str, int], dtype=np.float32, shards: int = 1) -> Path:
    """Write a GPT-2 of random weights, of order one in the blocks."""
    folder.mkdir()
    fields = {"model_type": "gpt2", **sizes}
    (folder / "config.json").write_text(json.dumps(fields))
    Tokenizer(vocabulary(sizes["vocab_size"])).save(folder)
    config, rng = config_of(fields, "config.json"), np.random.default_rng(0)
    empty = {name: np.broadcast_to(np.float32(0), shape) for name, shape in parameter_shapes(config).items()}
    shapes = {name: array.shape for name, array in state_dict(config, empty).items()}
    table = {name: f"part-{number % shards}.safetensors" for number, name in enumerate(shapes)}
    for part in sorted(set(table.values())):
        tensors = {
            name: (rng.standard_normal(prod(shape), np.float32).reshape(shape) * shape[0] ** -0.5).astype(dtype)
            for name, shape in shapes.items()
            if table[name] == part
        }
        safetensors.save_file(tensors, folder / part)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    return folder


def peak_to_import(large: Path, folder: Path) -> float:
    """The memory that loading and saving takes, as a multiple of the model's."""
    small = write_gpt2(folder / "tiny", {"n_layer": 1, "n_head": 1, "n_embd": 8, "n_positions": 8, "vocab_size": 300})
    arguments = [sys.executable, "-c", MEASURE, small, large]
    return float(subprocess.run(arguments, env=ENVIRONMENT, check=True, capture_output=True).stdout)


def test_a_model_is_in_memory_once(tmp_path):
    """A copy of a whole tensor would make it 1.33 times, a map of the file 2 times."""
    assert peak_to_import(write_gpt2(tmp_path / "large", WIDE), tmp_path) < 1.2


@pytest.mark.long
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16], ids=["F32", "F16", "BF16"])
def test_the_smallest_gpt2_is_in_memory_once(tmp_path, dtype):
    large = write_gpt2(tmp_path / "large", GPT2, dtype, shards=3)
    peak = peak_to_import(large, tmp_path)
    print(f"{peak:.3f} times the model")
    assert peak < 1.2


@pytest.mark.long
@pytest.mark.usefixtures("quick")
def test_the_smallest_gpt2_is_used_like_any_run(tmp_path, capsys):
    """It is imported, evaluated, writes, and learns with LoRA."""
    folder, made, tuned = tmp_path / "gpt2", tmp_path / "made", tmp_path / "tuned"
    write_gpt2(folder, GPT2 | {"n_positions": 32}, np.float16, shards=2)
    assert run("import", folder, "--out", made) == 0
    assert run("evaluate", made, "--data", write_text(tmp_path, n_lines=20)) == 0
    assert "bits per byte" in capsys.readouterr().out
    assert run("generate", made, "--max_tokens", 2, "--prompt", "the cat") == 0
    data = write_jsonl(tmp_path / "data.jsonl", [{"prompt": f"the cat {i}", "response": "sat"} for i in range(8)])
    settings = {"train__steps": 2, "batch__size": 2, "batch__micro_size": 2, "adapt__lora_rank": 2}
    assert run(*stage_arguments("sft", made, tuned, data=data, **settings)) == 0
    assert run("generate", tuned, "--max_tokens", 2) == 0
    assert run("verify", tuned) == 0
