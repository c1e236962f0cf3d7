"""`python -m npllm.reference` needs NumPy alone, and what it prints is true."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from plain_network import plain_config
from small_runs import ENVIRONMENT, PATIENCE

from npllm.reference import lesson
from npllm.reference.weights import initial_weights, weight_shapes

LESSON = "import runpy; runpy.run_module('npllm.reference', run_name='__main__')"
NAME_MODULES = """
import sys
names = {name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names)
print(*sorted(names), file=sys.stderr)
"""


def fresh_python(program: str) -> subprocess.CompletedProcess:
    """Run a program in a fresh interpreter.

    Its standard error names its modules from outside the standard library.
    """
    command = [sys.executable, "-c", program + NAME_MODULES]
    environment = ENVIRONMENT | {"OPENBLAS_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=True)


@pytest.fixture(scope="module")
def process():
    return fresh_python(LESSON)


def test_nothing_but_numpy_is_imported(process):
    by_numpy = fresh_python("import numpy.random").stderr.split()  # NumPy loads modules of Cython
    assert set(process.stderr.split()) - set(by_numpy) == {"npllm"}


def test_the_loss_falls_from_a_blind_guess_to_what_the_context_leaves_open(process):
    losses = [float(loss) for loss in re.findall(r"loss (\d\.\d{3})\n", process.stdout)]
    blind = np.log(len(set(lesson.TEXT)))
    assert losses[0] == pytest.approx(blind, rel=0.05)
    assert losses[-1] < 0.35


def test_every_parameter_has_an_error_and_all_are_small(process):
    errors = dict(re.findall(r"^(\S+) +[\dx]+   (\d\.\de-\d\d)$", process.stdout, flags=re.MULTILINE))
    config = lesson.small_network(len(set(lesson.TEXT)))
    assert errors.keys() == weight_shapes(config).keys()
    assert max(map(float, errors.values())) < 1e-6


def test_what_it_writes_is_the_text(process):
    written = process.stdout.rpartition("writes on from 'The ':\n\n")[2]
    lines = set(lesson.TEXT.splitlines())
    assert len(lines & set(written.splitlines())) >= 2
    words = set(re.findall(r"\w+", lesson.TEXT))
    found = re.findall(r"\w+", written)[:-1]  # the last word may be cut
    assert sum(word in words for word in found) > 0.8 * len(found)


def test_a_wrong_gradient_shows_in_the_table(monkeypatch):
    right = lesson.loss_and_gradients

    def wrong(config, p, tokens, targets):
        loss, dp = right(config, p, tokens, targets)
        dp["blocks.0.mlp.up.weight"] *= 1.001
        return loss, dp

    config, rng = plain_config(n_embd=16, mlp_width=16, block_size=8), np.random.default_rng(0)
    p = initial_weights(config, seed=0)
    monkeypatch.setattr(lesson, "loss_and_gradients", wrong)
    errors = dict(lesson.gradient_errors(config, p, np.arange(100) % config.vocab_size, rng))
    assert {name for name, error in errors.items() if error > 1e-6} == {"blocks.0.mlp.up.weight"}


def test_the_text_is_a_ring():
    """Every character is a target; the first one follows the last."""
    tokens = np.arange(5)
    inputs, targets = lesson.random_batch(tokens, 50, 3, np.random.default_rng(0))
    assert inputs.shape == targets.shape == (50, 3)
    np.testing.assert_array_equal(targets, (inputs + 1) % 5)
    assert set(targets.flat) == set(range(5))


def test_a_reader_may_leave():
    """Python would end with a traceback and the exit code 120."""
    program = f"from npllm.reference import lesson; lesson.STEPS = lesson.CHECKED = 1; {LESSON}"
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run(
        [sys.executable, "-c", program], env=ENVIRONMENT, stdout=write, stderr=subprocess.PIPE, check=False
    )
    os.close(write)
    assert (ended.returncode, ended.stderr) == (141, b"")


def test_a_full_disk_is_one_sentence():
    program = f"from npllm.reference import lesson; lesson.STEPS = lesson.CHECKED = 1; {LESSON}"
    with open("/dev/full", "wb") as full:
        ended = subprocess.run(
            [sys.executable, "-c", program], env=ENVIRONMENT, stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert ended.returncode == 5
    assert ended.stderr == b"The lesson cannot be printed (No space left on device); print it to another place.\n"
