"""A real browser without a window, for the tests of pages: Debian's Chromium.

Playwright steers it over a pipe; no browser is downloaded. axe-core, which finds what
readers with a disability would miss, comes inside the package axe-playwright-python.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

DESKTOP, PHONE = 1280, 390  # pixels
SERIOUS = {"serious", "critical"}
BROKEN_ANCHORS = """() => [...document.querySelectorAll('a[href^="#"]')]
    .filter((link) => !document.getElementById(link.getAttribute("href").slice(1)))
    .map((link) => link.getAttribute("href"))"""


class Visit(NamedTuple):
    """An open page. errors: of its console, and exceptions. requests: its connections,
    which must be none."""

    page: object
    errors: list[str]
    requests: list[str]


@pytest.fixture(scope="session")
def chromium():
    """A browser for all tests of a process; without one they are skipped."""
    driver = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("Chromium is not installed (apt-get install chromium)")
    with driver.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def visit(
    chromium, path: Path | str, *, width: int = DESKTOP, javascript: bool = True, dark: bool = False
) -> Iterator[Visit]:
    """Open a page from the disk. path: a file, or an address of this machine."""
    context = chromium.new_context(
        viewport={"width": width, "height": 900},
        java_script_enabled=javascript,
        color_scheme="dark" if dark else "light",
    )
    try:
        page = context.new_page()
        seen = Visit(page, [], [])
        page.on("console", lambda message: message.type in ("error", "warning") and seen.errors.append(message.text))
        page.on("pageerror", lambda error: seen.errors.append(str(error)))
        page.on(
            "request",
            lambda request: request.url.startswith(("file:", "data:")) or seen.requests.append(request.url),
        )
        page.goto(path if isinstance(path, str) else path.resolve().as_uri())
        yield seen
    finally:
        context.close()


def assert_opens_soundly(chromium, path: Path, width: int) -> None:
    """A page has no errors, no connections and no broken links, and fits the window."""
    with visit(chromium, path, width=width) as seen:
        assert seen.errors == []
        assert seen.requests == []
        assert broken_anchors(seen.page) == []
        assert sideways(seen.page) == 0


def broken_anchors(page) -> list[str]:
    """The links inside the page whose target is missing."""
    return page.evaluate(BROKEN_ANCHORS)


def serious_violations(page) -> list[str]:
    """What axe-core calls serious or critical: the rule, and the first place."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    violations = axe.Axe().run(page).response["violations"]
    return [f"{each['id']}: {each['nodes'][0]['html'][:200]}" for each in violations if each["impact"] in SERIOUS]


def sideways(page) -> int:
    """By how many pixels the page is wider than the window."""
    return page.evaluate("() => document.documentElement.scrollWidth - document.documentElement.clientWidth")
