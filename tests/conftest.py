"""What every test shares: reproducible hypothesis examples, and the two backends."""

import importlib

import pytest
from hypothesis import settings

# derandomize: the same examples in every run, so a failure is a change in the code and never luck.
# No deadline: the first call of a kernel compiles it.
settings.register_profile("npllm", derandomize=True, deadline=None, max_examples=20)
settings.load_profile("npllm")


@pytest.fixture(scope="session", params=["reference", "kernels"])
def ops(request):
    """The package of operations under test: each test that asks for it runs once with either."""
    return importlib.import_module(f"npllm.{request.param}")
