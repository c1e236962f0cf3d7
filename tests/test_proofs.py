"""pytest's last lines count what was checked, in one process or several."""

import os
import subprocess
import sys
from pathlib import Path

import gradient_check
import numpy as np
import proofs
import pytest

TESTS = {
    "test_one.py": "import proofs\ndef test_gradients():\n    proofs.count(proofs.GRADIENTS, 3)\n",
    "test_two.py": (
        "import proofs\n"
        "def test_files():\n    proofs.count(proofs.FILES, 1200)\n"
        "def test_gradients():\n    proofs.count(proofs.GRADIENTS)\n    proofs.count(proofs.ENTRIES, 50)\n"
    ),
}


@pytest.mark.parametrize("processes", ["0", pytest.param("2", marks=pytest.mark.long)])
def test_the_counts_of_all_processes_are_printed(tmp_path, processes):
    for name, text in TESTS.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "proofs", "-n", processes, "--dist", "loadfile"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    assert "4 gradients agree with finite differences, 50 of their entries one by one" in lines
    assert "1,200 hostile or damaged files refused by name" in lines
    assert "faults" not in result.stdout


def test_a_gradient_counts_when_it_is_right_and_only_then(monkeypatch):
    monkeypatch.setattr(proofs, "counts", proofs.Counter())
    few, many = np.linspace(0.5, 1.5, 7), np.linspace(0.5, 1.5, 200)

    def check(factor):
        gradients = {"few": 2 * few, "many": factor * many}
        gradient_check.check_gradients(lambda: np.sum(few**2) + np.sum(many**2), {"few": few, "many": many}, gradients)

    check(2)
    assert proofs.counts == {proofs.GRADIENTS: 2, proofs.ENTRIES: 7}
    with pytest.raises(AssertionError):
        check(2.1)
    assert proofs.counts == {proofs.GRADIENTS: 2, proofs.ENTRIES: 7}
