"""Set-up of every test: hypothesis profile, signals, the two backends, short runs."""

import importlib
import os
import signal

# Two processes of tests share the cores, so threads that wait must not keep them busy.
# OpenMP reads this when the first kernel is loaded: it must stand before the imports.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
from hypothesis import HealthCheck, settings

from npllm.training import results, train

pytest_plugins = ["proofs"]

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


@pytest.fixture(scope="session", params=["reference", "kernels"])
def ops(request):
    """The package of operations under test; a test that asks for it runs with both."""
    return importlib.import_module(f"npllm.{request.param}")


@pytest.fixture
def quick(monkeypatch):
    """Shorten runs: no measurement of the peak, no plot, a sample of two tokens."""
    monkeypatch.setattr(train, "matmul_peak", lambda dtype: 1e9)
    monkeypatch.setattr(results, "SAMPLE_TOKENS", 2)
    monkeypatch.setattr(results, "plot_loss", lambda metrics, path: None)


def pytest_addoption(parser):
    parser.addoption("--record-weights", action="store_true", help="see tests/reliability/test_recorded_weights.py")
