"""The fixture `backend`: the name that GPT takes.

A test with this fixture runs once with each backend.
"""

import pytest


@pytest.fixture(scope="session")
def backend(ops):
    return ops.__name__.removeprefix("npllm.")
