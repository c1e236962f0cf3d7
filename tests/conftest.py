"""Set-up of every test: hypothesis profile, signals, the two backends, short runs."""

import functools
import importlib
import os
import signal

# Two processes of tests share the cores, so threads that wait must not keep them busy.
# OpenMP reads this when the first kernel is loaded: it must stand before the imports.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import pytest
from hypothesis import HealthCheck, settings
from rich.console import Console

from npllm.data import docstrings
from npllm.tokenizer import fast_path
from npllm.training import results
from npllm.training.compile_ahead import compiling_ahead
from npllm.training.warmup import every_kind

pytest_plugins = ["proofs", "pages.browser"]  # pages.browser: one Chromium for all tests of a process

# A parent such as nohup, or a shell that runs the tests in the background, may ignore
# signals that the tests send. A child inherits that, so the defaults are set again.
signal.signal(signal.SIGINT, signal.default_int_handler)
for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)

# derandomize: the examples are the same in every run, so only a change of the code can
# make a test fail. There is no deadline and slow examples are allowed, because the
# first call of a kernel compiles it and the machine may be busy.
unhurried = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("npllm", derandomize=True, max_examples=20, **unhurried)
settings.load_profile("npllm")


def pytest_sessionstart(session):
    """Compile the kernels once, before the processes that run the tests start: each of
    them would compile most kernels for itself. A choice of tests needs few kernels, and
    compiles them itself."""
    config = session.config
    if config.args_source is config.ArgsSource.TESTPATHS and config.getoption("numprocesses", None):
        kinds = every_kind()
        doubles = [kind._replace(dtype="float64") for kind in kinds if kind.dtype == "float32"]
        with compiling_ahead(kinds + doubles, Console()):
            pass


@pytest.fixture(autouse=True)
def _new_process(monkeypatch):
    """What the tests before this one have tokenised does not count."""
    monkeypatch.setattr(fast_path, "_process", fast_path.Progress())


@pytest.fixture(scope="session", params=["reference", "kernels"])
def ops(request):
    """The package of operations under test; a test that asks for it runs with both."""
    return importlib.import_module(f"npllm.{request.param}")


@pytest.fixture
def quick(monkeypatch):
    """Shorten runs: no plot, a sample of two tokens."""
    monkeypatch.setattr(results, "SAMPLE_TOKENS", 2)
    monkeypatch.setattr(results, "plot_loss", lambda metrics, path: None)


functions_of = functools.cache(lambda source, parse=docstrings.functions_of: list(parse(source)))


@pytest.fixture
def library_parsed_once(monkeypatch):
    """Parse each source file of the standard library once, for all tests that ask for
    its functions."""
    monkeypatch.setattr(docstrings, "functions_of", functions_of)


def pytest_addoption(parser):
    parser.addoption("--record-weights", action="store_true", help="see tests/reliability/test_recorded_weights.py")
