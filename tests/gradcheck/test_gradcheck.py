"""`python -m npllm.gradcheck`: right pairs, every kind of mistake, bad arguments."""

import subprocess
import sys
from pathlib import Path

import pytest
from small_runs import ENVIRONMENT, PATIENCE

from npllm.gradcheck.__main__ import main

REFERENCE = Path(__file__).resolve().parents[2] / "npllm" / "reference"
QKV = ["--qkv", "2,5,24", "--n_head", "=2", "--n_kv_head", "=1"]

PAIRS = """
import numpy as np

def layer_forward(x, weight, bias=None):
    hidden = np.tanh(x)
    y = hidden @ weight
    return (y if bias is None else y + bias), hidden

def layer_backward(dy, cache, weight, dweight, dbias=None):
    dweight += cache.T @ dy
    if dbias is not None:
        dbias += dy.sum(axis=0)
    return (1 - cache**2) * (dy @ weight.T)

def gate_forward(up, gate):
    return up * np.sin(gate)

def gate_backward(dy, up, gate):
    return dy * np.sin(gate), dy * up * np.cos(gate)

def norm_forward(x):
    centred = x - x.mean(axis=1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5)

def norm_backward(dy, x):
    rstd = 1 / np.sqrt(x.var(axis=1, keepdims=True) + 1e-5)
    x_hat = (x - x.mean(axis=1, keepdims=True)) * rstd
    return rstd * (dy - dy.mean(axis=1, keepdims=True) - x_hat * (dy * x_hat).mean(axis=1, keepdims=True))

def total_forward(x):
    return float((x**3).sum())

def total_backward(dtotal, x):
    return dtotal * 3 * x**2
"""


@pytest.fixture
def checked(tmp_path, capsys):
    """Check a pair of PAIRS, with `old` replaced by `new`; the exit code and the
    report, in one line.
    """

    def check(name: str, *options: str, old: str = "", new: str = "") -> tuple[int, str]:
        assert old in PAIRS, "the source of the test has changed"
        file = tmp_path / "pairs.py"
        file.write_text(PAIRS.replace(old, new, 1) if old else PAIRS)
        code = main([f"{file}:{name}", *options])
        output = capsys.readouterr()
        return code, " ".join((output.out + output.err).split())

    return check


@pytest.mark.parametrize(
    "arguments",
    [
        ["gelu"], ["swiglu"], ["rmsnorm"], ["layernorm"], ["layernorm", "--bias", "=None"], ["add_norm"], ["linear"],
        ["linear", "--x", "7,2", "--weight", "2,6", "--epilogue", "=gelu", "--seed", "3"],
        ["attention", *QKV],
        ["qk_norm", *QKV, "--q-weight", "6", "--k-weight=6"],
        ["rotary", *QKV, "--cos", "5,3", "--sin", "5,3"],
        ["lm_head_loss"],
        ["lm_head_loss", "--x", "6,3", "--weight", "5,3", "--targets", "-1..5:6"],
        ["embedding", "--tokens", "0..7:2,3", "--token_embedding", "7,4", "--position_embedding", "3,4"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_the_pairs_of_the_book_are_right(arguments, capsys):
    name, *options = arguments
    assert main([f"{REFERENCE / name}.py:{name}", *options]) == 0
    report = capsys.readouterr().out
    assert "WRONG" not in report
    assert "right   largest relative error" in report


@pytest.mark.parametrize("name", ["layer", "layer_forward", "layer_backward", "gate", "norm", "total"])
def test_a_right_pair_is_right(checked, name):
    code, report = checked(name)
    assert code == 0, report
    assert report.endswith("All gradients are right.")


MISTAKES = {
    "sign": ("layer", "return (1", "return -(1", "dx WRONG", "Its sign is wrong"),
    "factor": ("total", "* 3 * x", "* x", "dx WRONG", "It is 0.333333 times the right gradient; a factor"),
    "mean": ("layer", "dy.sum(axis=0)", "dy.mean(axis=0)", "dbias WRONG",
             "It is 0.2 times the right gradient (perhaps 1 / the length of axis 0 of x)"),
    "overwritten": ("layer", "dweight += c", "dweight[...] = c", "dweight WRONG", "It overwrites what dweight held"),
    "another array": ("layer", "dweight += c", "dweight = c", "dweight WRONG", "Nothing is added to dweight."),
    "zero": ("norm", "return rstd * (", "return 0 * rstd * (", "dx WRONG", "It is zero everywhere"),
    "exchanged": ("gate", "dy * np.sin(gate), dy * up * np.cos(gate)", "dy * up * np.cos(gate), dy * np.sin(gate)",
                  "dup WRONG", "It is the gradient of gate; two gradients have changed places."),
    "a term": ("norm", "- dy.mean(axis=1, keepdims=True) ", "", "dx WRONG",
               "the same number at all places along axis 1"),
    "not finite": ("gate", "return dy * np.sin(gate)", "return dy / 0", "dup WRONG", "It is not finite"),
    "one row": ("gate", "return dy * np.sin(gate)", "return dy * np.sin(gate) * [[1], [1], [0], [1], [1]]", "dup WRONG",
                "Only the places 2 along axis 0 are wrong. They are zero."),
    "one element": ("gate", "dy * up * np.cos(gate)", "np.where(up == up.max(), 1, dy * up * np.cos(gate))",
                    "dgate WRONG", "1 of its 35 elements are wrong"),
    "inner derivative": ("layer", "(1 - cache**2)", "(1 - cache)", "dx WRONG", "It fits no simple mistake"),
    "shape": ("layer", "return (1 - cache**2) * (dy @ weight.T)", "return dy", "dx WRONG",
              "Its shape is (5, 6), that of x is (5, 7)."),
    "not summed": ("layer", "dbias += dy.sum(axis=0)", "dbias += dy", "layer_backward fails", "broadcast"),
    "raises": ("layer", "cache.T @ dy", "cache @ dy", "layer_backward fails for inputs that the forward takes: Value",
               "ValueError"),
    "too many": ("norm", "return rstd", "return x, rstd", "returns 2 gradients, but only x", ""),
    "no array": ("norm", "return rstd * (", "return {'dx': rstd}; (", "no array of numbers where dx belongs", ""),
    "nothing": ("norm", "return rstd", "rstd", "norm_backward returns no gradient", ""),
    "changed": ("gate", "return dy * np.sin(gate)", "dy *= 2; return dy * np.sin(gate)", "changes its argument dy", ""),
    "random": ("gate", "return up * np.sin(gate)", "return up * np.sin(gate) + np.random.default_rng().normal()",
               "gives other results for the same inputs", ""),
    "float32": ("gate", "return up * np.sin(gate)", "return (up * np.sin(gate)).astype(np.float32)",
                "returns float32", ""),
}  # fmt: skip


@pytest.mark.parametrize(("name", "old", "new", "where", "why"), MISTAKES.values(), ids=MISTAKES)
def test_every_kind_of_mistake_is_explained(checked, name, old, new, where, why):
    code, report = checked(name, old=old, new=new)
    assert code == 1, report
    assert where in report
    assert why in report
    assert "All gradients" not in report


def test_a_transposed_gradient_is_explained(checked):
    """A square matrix: otherwise the shape would tell."""
    code, report = checked("layer", "--weight", "3,3", old="cache.T @ dy", new="dy.T @ cache")
    assert code == 1
    assert "dweight WRONG" in report
    assert "It is transposed" in report


def test_the_numbers_are_those_of_the_worst_element(checked):
    """x = 0.5 in float64: the backward says 3 x^2 + 1 = 1.75 times dy, not 0.75."""
    code, report = checked("total", "--x", "1,1", old="3 * x**2", new="(3 * x**2 + 1)")
    backward, differences = (float(word) for word in report.split("at [0, 0]: ")[1].split()[:5:4])
    assert code == 1
    assert f"largest relative error {abs(backward - differences) / max(abs(backward), abs(differences)):.1e}" in report


def test_an_input_without_a_gradient_is_named(checked):
    code, report = checked("gate", old=", dy * up * np.cos(gate)")
    assert code == 0
    assert "gate: the backward gives no gradient, so none is checked." in report


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--z", "3"], "layer_forward has no argument z; it has x, weight, bias."),
        (["--x", "three"], "--x three is no shape; write a shape such as 4,3"),
        (["--x", "0,3"], "--x 0,3 has 0 elements; give 1 to 4,096"),
        (["--x", "100,100"], "--x 100,100 has 10,000 elements; give 1 to 4,096"),
        (["--x", "5..5:4"], "--x 5..5:4 is an empty range"),
        (["--x"], "--x has no value"),
        (["--seed", "-1"], "The seed is '-1'"),
        (["more"], "'more' is one argument too many"),
        (["--x", "4,3", "--weight", "4,3"], "layer_forward fails for x (4, 3), weight (4, 3), bias (3,) (ValueError:"),
        (["--x", "=1", "--weight", "=2", "--bias", "=None"], "layer_forward fails for x = 1, weight = 2, bias = None"),
    ],
    ids=" ".join,
)
def test_bad_options_are_one_sentence(checked, options, sentence):
    code, report = checked("layer", *options)
    assert code == 2
    assert sentence in report


@pytest.mark.parametrize(
    ("source", "name", "sentence"),
    [
        (None, "layer", "does not exist or is no file"),
        ("def layer_forward(:", "layer", "line 1 is not Python"),
        ("import numpy\n1 / 0", "layer", "cannot be imported: ZeroDivisionError in line 2: division by zero; mend it."),
        ("raise SystemExit", "layer", "cannot be imported: SystemExit in line 1; mend it."),
        (PAIRS, "foo", "has no function foo_forward and no foo_backward; it has the pairs layer, gate, norm, total."),
        ("def f_forward(): 0\ndef f_backward(dy): 0", "f", "f_forward has no argument"),
        ("def f_forward(*x): 0\ndef f_backward(dy): 0", "f", "f_forward takes *x; name its arguments one by one."),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path, capsys, source, name, sentence):
    file = tmp_path / "mine.py"
    if source is not None:
        file.write_text(source)
    assert main([f"{file}:{name}"]) == 3
    assert sentence in capsys.readouterr().err


def test_a_name_without_a_file_is_a_usage_error(capsys):
    assert main(["layernorm"]) == 2
    assert "write FILE:FUNCTION" in capsys.readouterr().err


def test_neighbours_are_found_but_hide_no_module_of_python(tmp_path, capsys):
    """npllm/reference has a random.py."""
    path = list(sys.path)
    (tmp_path / "secrets.py").write_text("raise ImportError('a neighbour')")
    (tmp_path / "scales.py").write_text("FACTOR = 3.0")
    source = "import secrets\nfrom scales import FACTOR\n"
    source += "def f_forward(x): return FACTOR * x\ndef f_backward(dy): return FACTOR * dy\n"
    (tmp_path / "mine.py").write_text(source)
    for name in ("secrets", "scales"):
        sys.modules.pop(name, None)
    assert main([f"{tmp_path / 'mine.py'}:f"]) == 0, capsys.readouterr().err
    assert sys.path == path


def test_it_runs_as_a_module():
    """It also needs no compiler: a reader's file is checked in less than a second."""
    command = [sys.executable, "-m", "npllm.gradcheck", f"{REFERENCE}/gelu.py:gelu"]
    process = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE)
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout.endswith("All gradients are right.\n")
