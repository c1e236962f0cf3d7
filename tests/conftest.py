"""What every test shares: reproducible hypothesis examples, the two backends, and runs that end soon."""

import importlib
import os
import signal

# Before any kernel is loaded: two processes of tests share the cores, and threads that wait must not keep them busy.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
from hypothesis import HealthCheck, settings

from npllm.training import results, train

pytest_plugins = ["proofs"]

# A parent such as nohup, or a shell that runs the tests in the background, may ignore signals that tests send.
signal.signal(signal.SIGINT, signal.default_int_handler)
for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)

# derandomize: the same examples in every run, so a failure is a change in the code and never luck.
# No deadline, and slow examples are no fault: the first call of a kernel compiles it, and the machine may be busy.
unhurried = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("npllm", derandomize=True, max_examples=20, **unhurried)
settings.load_profile("npllm")


@pytest.fixture(scope="session", params=["reference", "kernels"])
def ops(request):
    """The package of operations under test: each test that asks for it runs once with either."""
    return importlib.import_module(f"npllm.{request.param}")


@pytest.fixture
def quick(monkeypatch):
    """Leave out what a run does after its last step, and the measurement of the machine's peak."""
    monkeypatch.setattr(train, "matmul_peak", lambda dtype: 1e9)
    monkeypatch.setattr(results, "SAMPLE_TOKENS", 2)
    monkeypatch.setattr(results, "plot_loss", lambda metrics, path: None)


def pytest_addoption(parser):
    parser.addoption("--record-weights", action="store_true", help="see tests/reliability/test_recorded_weights.py")
