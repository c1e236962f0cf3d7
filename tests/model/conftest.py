"""The `backend` fixture: a test that asks for it runs once with each backend of GPT."""

import pytest


@pytest.fixture(scope="session")
def backend(ops):
    return ops.__name__.removeprefix("npllm.")
