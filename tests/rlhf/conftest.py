"""The backend by the name that GPT takes: each test that asks for it runs once with either."""

import pytest


@pytest.fixture(scope="session")
def backend(ops):
    return ops.__name__.removeprefix("npllm.")
