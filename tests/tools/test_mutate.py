"""tools/mutate.py: each kind of mistake, the report, the table of equivalents."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from small_runs import ENVIRONMENT, PATIENCE

from tools import mutate
from tools.mutate import TARGETS, all_mutants, not_on_trial, unknown_entries
from tools.mutation import mistakes
from tools.mutation.mutants import Target, functions_of

ROOT = Path(__file__).resolve().parents[2]


def planted(folder: Path, *lines: str) -> list[tuple[str, str]]:
    """Return the kind and the changed line of every mutant of a function with these
    lines.
    """
    body = "".join(f"    {line}\n" for line in lines)
    (folder / "own.py").write_text(f'def f(a, b, n):\n    """What it does: 1 + 1."""\n{body}')
    return [(mutant.kind, mutant.after) for mutant in all_mutants(folder, [Target("own.py", ("f",), ())])]


KINDS = {
    "y = a + b": [("sign", "y = a - b"), ("term", "y = a"), ("term", "y = b")],
    "y = a - b": [("sign", "y = a + b"), ("term", "y = a"), ("term", "y = -b")],
    "return -a": [("sign", "return a")],
    "y = a * b": [("factor", "y = a"), ("factor", "y = b")],
    "y = a / b": [("factor", "y = a"), ("normaliser", "y = a / (b + 1)")],
    "y = a // 2": [("factor", "y = a"), ("normaliser", "y = a // 3")],
    "y = a**2": [("factor", "y = a")],
    "y = a.T": [("transpose", "y = a")],
    "y = a @ b": [("transpose", "y = b @ a")],
    "y = a.swapaxes(-1, -2)": [("transpose", "y = a")],
    "y = a.transpose(0, 2, 1)": [("transpose", "y = a.transpose(0, 1, 2)")],
    "y = a.sum(axis=0)": [("normaliser", "y = a.mean(axis=0)"), ("axis", "y = a.sum(axis=1)")],
    "y = a.mean(axis=-1)": [("normaliser", "y = a.sum(axis=-1)"), ("axis", "y = a.mean(axis=-2)")],
    "y = f(a, axis=(0, 1))": [("axis", "y = f(a, axis=0)")],
    "a += b": [("stale", "pass"), ("sign", "a -= b"), ("overwrite", "a[...] = b")],
    "a[n] -= b": [("stale", "pass"), ("sign", "a[n] += b"), ("overwrite", "a[n] = b")],
    "y = a[1]": [("off by one", "y = a[0]")],
    "y = a[:, 0]": [("off by one", "y = a[:, 1]")],
    "y = a[1:n]": [("off by one", "y = a[2:n]"), ("off by one", "y = a[1:n - 1]")],
    "y = range(n)": [("off by one", "y = range(1, n)"), ("off by one", "y = range(0, n - 1)")],
    "y = slice(a, n, 2)": [("off by one", "y = slice(a + 1, n, 2)"), ("off by one", "y = slice(a, n - 1, 2)")],
    "y = a < b": [("off by one", "y = a <= b")],
    "y = a is None": [("condition", "y = a is not None")],
    "y = a and b": [("condition", "y = a or b")],
    "y = not a": [("condition", "y = a")],
    "y = f(2.0)": [("constant", "y = f(4.0)")],
    "y = f(0.0)": [("constant", "y = f(1.0)")],
    "a = f(a)": [("stale", "pass")],
    "a[...] = b": [("stale", "pass")],
    "f(a)": [("stale", "pass")],
    "return a, b": [("exchange", "return (b, a)")],
    "y = np.zeros((a + 1, 2 * b), float)": [],
    "y = a.reshape(n + 1, -1)": [],
    'raise ValueError(f"{a + b} is wrong" + str(a - b))': [],
    "y: float = a": [],
    'y = {"loss": a / n}': [],
}


@pytest.mark.parametrize("line", KINDS)
def test_every_kind_of_mistake_is_planted(tmp_path, line):
    assert sorted(planted(tmp_path, line)) == sorted(KINDS[line])


def test_conditions_and_blocks(tmp_path):
    assert planted(tmp_path, "if a:", "    b += n") == [
        ("condition", "if not a:"),
        ("stale", "pass"),
        ("sign", "b -= n"),
        ("overwrite", "b[...] = n"),
    ]


def test_an_array_of_the_function_itself_may_get_another_value(tmp_path):
    """Only an argument is overwritten in place."""
    assert ("overwrite", "y = b") in planted(tmp_path, "y = f(a)", "y += b")
    assert ("stale", "pass") not in planted(tmp_path, "y = f(a)")


def test_two_mistakes_with_one_result_are_one_mutant(tmp_path):
    assert planted(tmp_path, "y = a * a") == [("factor", "y = a")]


@pytest.mark.parametrize("file", ["attention", "lm_head_policy", "swiglu"])
def test_the_text_of_a_mutant_is_the_edited_tree(file):
    """Otherwise a pair of parentheses is missing, and the mutant is another one."""
    [target] = (target for target in TARGETS if target.file == f"npllm/reference/{file}.py")
    source = (ROOT / target.file).read_text()
    expected = {}  # as a dict: without the second of two equal ones
    for name, function in functions_of(ast.parse(source)):
        if name in target.functions:
            for edit in mistakes.edits(function):
                expected[ast.unparse(Replacing(edit).visit(ast.parse(source)))] = None
    assert [ast.unparse(ast.parse(mutant.source)) for mutant in all_mutants(ROOT, [target])] == list(expected)


class Replacing(ast.NodeTransformer):
    """Makes an edit in another tree of the same source."""

    def __init__(self, edit):
        self.edit, self.kind, self.place = edit, type(edit.old), mistakes._place(edit.old)

    def visit(self, node):
        if type(node) is self.kind and mistakes._place(node) == self.place:
            return self.edit.new
        return self.generic_visit(node)


def test_mutants_have_numbers_that_stay():
    mutants = all_mutants(ROOT, TARGETS)
    assert [mutant.number for mutant in mutants] == list(range(1, len(mutants) + 1))
    assert mutants == all_mutants(ROOT, TARGETS)
    assert len(mutants) >= 300


def test_every_backward_is_on_trial():
    assert not not_on_trial(ROOT)


def test_the_table_argues_about_mutants_that_exist():
    assert not unknown_entries(all_mutants(ROOT, TARGETS))


def test_an_entry_without_a_mutant_is_named(monkeypatch):
    monkeypatch.setattr(mutate, "EQUIVALENT", {("npllm/reference/gelu.py", "gelu_backward", "x", "y"): "no reason"})
    [problem] = unknown_entries(all_mutants(ROOT, TARGETS))
    assert "does not exist: npllm/reference/gelu.py, gelu_backward, 'x' -> 'y'; remove it" in problem


TOY = """\
def half_backward(dy, n):
    dx = dy * 0.5
    while n > 0:
        n -= 1
    return dx

def double_backward(dy):
    return dy * 2.0
"""
TEST_OF_TOY = """\
from toy import half_backward

def test_half():
    assert half_backward(3.0, 2) == 1.5
"""
# The table argues about one survivor, and about a mutant that the test kills.
PROGRAM = """
import sys
from pathlib import Path
from tools import mutate
from mutation import trial
from mutation.mutants import Target

trial.LEAST_SECONDS, trial.TIMES_LONGER = 1, 0
mutate.ROOT = Path.cwd()
mutate.TARGETS = [Target("toy.py", ("half_backward", "double_backward"), ("test_toy.py",))]
mutate.EQUIVALENT.clear()
mutate.EQUIVALENT[("toy.py", "half_backward", "while n > 0:", "while n >= 0:")] = "n has no other use."
mutate.EQUIVALENT[("toy.py", "half_backward", "dx = dy * 0.5", "dx = dy * 1.0")] = "It is not."
sys.exit(mutate.main())
"""


def test_survivors_are_reported(tmp_path):
    """Wrong results, an exception and an endless loop are killed; all else is shown."""
    (tmp_path / "toy.py").write_text(TOY)
    (tmp_path / "test_toy.py").write_text(TEST_OF_TOY)
    environment = ENVIRONMENT | {"PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    assert process.returncode == 1, process.stderr
    report = process.stdout
    assert "-    return dy * 2.0\n+    return dy * 4.0\n" in report
    assert "+    while n >= 0:\n" in report
    assert "Equivalent: n has no other use.\n" in report
    for killed in ("dx = dy\n", "dx = 0.5", "dx = dy * 1.0", "n += 1", "n = 1"):
        assert f"+    {killed}" not in report
        assert f"+        {killed}" not in report
    assert "survives: toy.py:8; write the test that kills it." in process.stderr
    assert "calls a mutant equivalent that the tests kill: toy.py, half_backward, 'dx = dy * 1.0'" in process.stderr
    assert (tmp_path / "toy.py").read_text() == TOY


def test_tests_that_fail_without_a_mistake_prove_nothing(tmp_path):
    (tmp_path / "toy.py").write_text(TOY)
    (tmp_path / "test_toy.py").write_text(TEST_OF_TOY.replace("1.5", "2.5"))
    environment = ENVIRONMENT | {"PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    assert process.returncode == 1
    assert "The tests of toy.py fail without a mutation; mend them first." in process.stderr
    assert "killed" not in process.stdout


def test_a_file_that_is_not_on_trial_is_a_usage_error(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["mutate.py", "--only", "npllm/errors.py", "--list"])
    assert mutate.main() == 2
    assert "No mutant fits these options" in capsys.readouterr().err
