"""What the tests of pages share: the packages of pages, and the book."""

import pytest

from npllm.pages import kernel_times
from npllm.pages.packages import NEEDED


@pytest.fixture(autouse=True)
def packages_of_pages():
    """Skip a test of pages where the packages of the extra `report` are missing."""
    for name in NEEDED:
        pytest.importorskip(name, reason=f"{name} is not installed (pip install 'npllm[report]')")


@pytest.fixture(autouse=True)
def small_machine(monkeypatch):
    """Measure the machine with small arrays: the tests ask for no speed."""
    monkeypatch.setattr(kernel_times, "LARGE_MATRIX", 32)
    monkeypatch.setattr(kernel_times, "LARGE_ARRAY", 1024)


@pytest.fixture(scope="session")
def book_html():
    """The book, which takes seconds to make."""
    from npllm.pages.book import book_page

    return book_page()
