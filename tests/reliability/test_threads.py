"""The weights after 20 or 200 steps have the same bits on any number of threads.

That holds on every threading layer of Numba.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# The widths are not multiples of a tile, and there are more rows than in a chunk, so
# every thread's part has an edge.
PROGRAM = """
import hashlib, sys
import numba, numpy as np
import npllm

def weights_after(steps, threads):
    numba.set_num_threads(threads)
    config = npllm.ModelConfig(n_layer=2, n_head=3, n_embd=42, block_size=25, vocab_size=67, dropout=0.1)
    model = npllm.GPT(config, seed=1)
    optimizer = npllm.AdamW(model, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1)
    rng = np.random.default_rng(0)
    for step in range(steps):
        tokens = rng.integers(0, 67, (6, 26))
        model.loss_and_grad(tokens[:, :-1], tokens[:, 1:], step=step)
        optimizer.step(grad_clip=1.0)
    return model.params.flat

for threads in (1, 2, 3, 4):
    weights = weights_after(int(sys.argv[1]), threads)
    assert np.all(np.isfinite(weights))
    print(numba.threading_layer(), threads, hashlib.sha256(weights.tobytes()).hexdigest())
"""


def hashes(layer, steps):
    environment = os.environ | {"NUMBA_NUM_THREADS": "4", "NUMBA_THREADING_LAYER": layer, "PYTHONPATH": str(ROOT)}
    output = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(steps)], env=environment, capture_output=True, text=True, check=True
    ).stdout
    lines = [line.split() for line in output.splitlines()]
    assert [(used, int(threads)) for used, threads, _ in lines] == [(layer, n) for n in (1, 2, 3, 4)]
    return {sha256 for _, _, sha256 in lines}


@pytest.mark.skipif(sys.platform != "linux", reason="Numba brings its OpenMP layer on Linux only")
@pytest.mark.parametrize("steps", [20, pytest.param(200, marks=pytest.mark.long)])
def test_14_weights_have_the_same_bits(steps):
    assert len(hashes("omp", steps) | hashes("workqueue", steps)) == 1
