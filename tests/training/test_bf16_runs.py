"""train.dtype = bf16: in bfloat16 if the CPU multiplies it, else in float32."""

import json

import numpy as np
import pytest
from small_runs import checkpoints, pretrain_arguments, run, write_text

import npllm
from npllm.runs.checkpoint import load_checkpoint


def weights(folder):
    arrays = load_checkpoint(checkpoints(folder)[-1]).arrays
    return arrays["params"]


@pytest.fixture
def cpu_multiplies_bfloat16(monkeypatch, request):
    monkeypatch.setattr("npllm.training.machine.HAS_BFLOAT16_DOT", request.param)
    return request.param


@pytest.mark.parametrize("cpu_multiplies_bfloat16", [False, True], indirect=True)
def test_runs_in_what_the_cpu_has(tmp_path, capsys, cpu_multiplies_bfloat16):
    text = write_text(tmp_path)
    for dtype in ("float32", "bf16"):
        assert run(*pretrain_arguments(text, tmp_path / dtype, train__dtype=dtype)) == 0
    said = "training in float32" in capsys.readouterr().out
    assert said == (not cpu_multiplies_bfloat16)
    same = np.array_equal(weights(tmp_path / "float32"), weights(tmp_path / "bf16"))
    assert same == (not cpu_multiplies_bfloat16)
    assert weights(tmp_path / "bf16").dtype == np.float32
    capsys.readouterr()
    assert run("evaluate", tmp_path / "bf16") == 0  # in the same arithmetic as the run's own
    recorded = json.loads((tmp_path / "bf16" / "summary.json").read_text())["val_loss"]
    assert f"{recorded:.4f} nats" in capsys.readouterr().out
    assert npllm.load(tmp_path / "bf16")[0].dtype_name == ("bf16" if cpu_multiplies_bfloat16 else "float32")


def test_a_run_writes_with_rounded_weights(tmp_path, capsys):
    folder = tmp_path / "run"
    assert run(*pretrain_arguments(write_text(tmp_path), folder)) == 0
    capsys.readouterr()
    assert run("generate", folder, "--max-tokens", 20, "--dtype", "bf16") == 0
    assert len(capsys.readouterr().out) > 10
    tokens = np.arange(8)[None]
    exact, rounded = (npllm.load(folder, dtype=dtype)[0].logits(tokens) for dtype in (None, "bf16"))
    assert 0 < np.abs(rounded - exact).max() < 0.1 * np.abs(exact).max()
