"""Mutated checkpoints, shards and tokenizers; tools/fuzz.py reads more of them."""

import os
import random
import signal
import subprocess
import sys

import proofs
import pytest
from fuzzing import ENVIRONMENT, Target, fuzz, mutated, mutated_json, run_fuzzer, sealed
from small_runs import PATIENCE

from npllm.errors import DataError


@pytest.mark.parametrize("mutations", [600, pytest.param(3000, marks=pytest.mark.long)])
def test_mutated_files_are_refused_or_mean_the_same(tmp_path, mutations):
    report = run_fuzzer(tmp_path, seed=0, mutations=mutations)
    assert not report.failure, f"{report.file}: {report.failure}"
    assert report.mutations == mutations
    # Some files must be refused and some be read, or the mutations are too coarse or
    # too mild.
    assert 0.5 * mutations < report.refused < 0.95 * mutations
    proofs.count(proofs.FILES, report.refused)


@pytest.mark.parametrize("busy", ["while True: pass", "import regex; regex.match('(a|a)+$', 'a' * 40 + 'b')"])
def test_what_keeps_a_program_busy_ends_it_and_is_named(busy):
    """The time limit ends Python and C code alike; the traceback names the line."""
    inside = f"import fuzzing\nwith fuzzing.processor_time(0.2):\n    {busy}"
    environment = ENVIRONMENT | {"PYTHONPATH": os.pathsep.join([ENVIRONMENT["PYTHONPATH"], *sys.path])}
    process = subprocess.run(
        [sys.executable, "-c", inside], env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    assert process.returncode == -signal.SIGVTALRM
    assert "line 3 in <module>" in process.stderr


def raising(error):
    def read(path):
        raise error(path) if callable(error) else error

    return Target("file", lambda rng: b"", read)


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (KeyError("name"), KeyError),
        (MemoryError(), MemoryError),
        (DataError("another file is damaged"), AssertionError),
        (lambda path: DataError(f"{path} {'x' * 5000}"), AssertionError),
    ],
)
def test_what_is_no_typed_error_that_names_the_file_is_a_finding(tmp_path, error, found):
    with pytest.raises(found):
        fuzz(tmp_path, 0, 1, 60, [raising(error)])
    assert fuzz(tmp_path, 0, 5, 60, [raising(lambda path: DataError(f"{path} is damaged"))]) == (5, 5)


def test_equal_seeds_give_equal_mutations():
    data, other, document = bytes(range(256)) * 4, bytes(1000), {"a": [1, {"b": 2}], "c": "d"}

    def some(seed):
        rng = random.Random(seed)
        return [(mutated(rng, data, [other]), repr(mutated_json(rng, document))) for _ in range(50)]

    assert some(1) == some(1) != some(2)
    assert len({content for content, _ in some(1)} - {data}) > 40
    assert document == {"a": [1, {"b": 2}], "c": "d"}
    assert mutated(random.Random(0), b"", [other]) is not None
    assert len(sealed(b"short")) == 512
