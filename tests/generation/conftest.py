"""The backend by its name in GPT. A test that asks for it runs once with each."""

import pytest


@pytest.fixture(scope="session")
def backend(ops):
    return ops.__name__.removeprefix("npllm.")
