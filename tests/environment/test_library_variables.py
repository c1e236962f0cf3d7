"""Environment variables of Numba and Matplotlib: a bad one is named before anything is
prepared."""

import subprocess

import pytest
from small_runs import ENVIRONMENT, NPLLM, PATIENCE, pretrain_arguments, write_text

CLEAN = {name: value for name, value in ENVIRONMENT.items() if not name.startswith(("NUMBA_", "MPL"))}


def refusal(*arguments: str, **variables) -> str:
    """The one line on stderr of a process that ends with exit code 2 and prints nothing
    else."""
    process = subprocess.run(
        [*NPLLM, *arguments], env=CLEAN | variables, capture_output=True, text=True, timeout=PATIENCE
    )
    assert (process.returncode, process.stdout) == (2, ""), process.stderr
    [line] = process.stderr.splitlines()
    return line


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("NUMBA_THREADING_LAYER", "fibres", "is unknown to Numba"),
        ("NUMBA_THREADING_LAYER_PRIORITY", "omp", "It must be a permutation"),
        ("NUMBA_NUM_THREADS", "0", "must be > 0"),
        ("NUMBA_NUM_THREADS", "100000", "more threads than a process can start"),
        ("NUMBA_CPU_NAME", "znver99", "which LLVM does not know"),
        ("NUMBA_NUM_THREADS", "many", "could not be parsed"),
        ("NUMBA_OPT", "9", "could not be parsed"),
        ("NUMBA_CPU_FEATURES", "+fma,avx", "not every name begins with + or -"),
    ],
)
def test_a_variable_of_numba_is_named(tmp_path, name, value, why):
    text, out = write_text(tmp_path), tmp_path / "run"
    line = refusal(*pretrain_arguments(text, out), **{name: value})
    assert name in line
    assert repr(value) in line
    assert why in line
    assert line.endswith("; correct or unset it.")
    assert not out.exists()


def test_a_threading_layer_that_is_not_installed(tmp_path):
    try:
        from numba.np.ufunc import tbbpool  # noqa: F401
    except ImportError:
        line = refusal("verify", str(tmp_path), NUMBA_THREADING_LAYER="tbb")
        assert "NUMBA_THREADING_LAYER is 'tbb': No threading layer could be loaded." in line
    else:
        pytest.skip("TBB is installed")


def test_a_backend_that_matplotlib_does_not_know(tmp_path):
    pytest.importorskip("matplotlib")
    assert refusal("verify", str(tmp_path), MPLBACKEND="crayons") == (
        "npllm: The environment variable MPLBACKEND is 'crayons', which Matplotlib does not know; unset it, or set it "
        "to agg."
    )


def test_good_values_are_no_news(tmp_path):
    """They reach the verb, which finds that the folder is no run."""
    good = {"NUMBA_THREADING_LAYER": "workqueue", "NUMBA_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    good |= {"NUMBA_CPU_NAME": "generic"}
    process = subprocess.run(
        [*NPLLM, "verify", str(tmp_path)], env=CLEAN | good, capture_output=True, text=True, timeout=PATIENCE
    )
    assert process.returncode == 3
    assert str(tmp_path) in process.stderr
    assert len(process.stderr.splitlines()) == 1
