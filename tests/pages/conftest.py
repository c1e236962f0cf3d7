"""What the tests of pages share: the browser, and the packages of the pages."""

import pytest
from browser import chromium  # noqa: F401  a fixture

from npllm.pages.packages import NEEDED


@pytest.fixture(autouse=True)
def packages_of_pages():
    """Skip a test of pages where the packages of the extra `report` are missing."""
    for name in NEEDED:
        pytest.importorskip(name, reason=f"{name} is not installed (pip install 'npllm[report]')")
