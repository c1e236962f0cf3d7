"""The book in a real browser, on a desk and on a phone, with JavaScript and without."""

import pytest
from browser import DESKTOP, PHONE, assert_opens_soundly, serious_violations, visit

from npllm.pages.page import write_page

CHAPTERS = 26
FEWEST_FORMULAS = 150
KEEP_THREE = """() => document.querySelectorAll("section:not(#notation, #linear, #transformer)")
    .forEach((section) => section.remove())"""


@pytest.fixture(scope="module")
def path(chromium, book_html, tmp_path_factory):
    path = tmp_path_factory.mktemp("book") / "book.html"
    write_page(path, book_html)
    return path


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_it_opens_without_errors_and_connects_to_nothing(chromium, path, width):
    assert_opens_soundly(chromium, path, width)


def test_chapters_formulas_and_pictures_are_there(chromium, path):
    with visit(chromium, path) as seen:
        page = seen.page
        assert page.locator("main section h2").count() == CHAPTERS + 1
        assert page.locator(".contents a").count() == CHAPTERS + 1
        assert page.locator("math").count() > FEWEST_FORMULAS
        assert page.locator("math merror").count() == 0
        assert page.locator(".source").count() == CHAPTERS
        assert page.locator("svg.picture").count() >= 1
        assert page.locator("img.heat-map").count() >= 10
        loaded = page.evaluate("() => [...document.images].every((image) => image.complete && image.naturalWidth > 0)")
        assert loaded


def test_a_formula_has_a_size(chromium, path):
    """MathML is laid out: a fraction or a sum with its index is higher than a line."""
    with visit(chromium, path) as seen:
        block = seen.page.locator("#linear .formula math").first.bounding_box()
        assert block["height"] > 40
        assert block["width"] > 100


def test_it_is_readable_without_javascript(chromium, path):
    with visit(chromium, path, javascript=False) as seen:
        text = seen.page.inner_text("#attention")
        assert "Causal multi-head attention" in text
        assert "def attention_backward" in text
        assert seen.page.locator(".contents a").first.is_visible()
        seen.page.locator("#attention details summary").first.click()
        assert "test_attention" in seen.page.locator("#attention details").first.inner_text()


@pytest.mark.parametrize(("width", "dark"), [(DESKTOP, False), (PHONE, True)])
def test_axe_finds_nothing_serious(chromium, path, width, dark):
    """All chapters come from one template, so three stand for all: axe is slow."""
    with visit(chromium, path, width=width, dark=dark) as seen:
        seen.page.evaluate(KEEP_THREE)
        assert seen.page.locator("section").count() == 3
        assert serious_violations(seen.page) == []


def test_the_keys_j_and_k_go_through_the_chapters(chromium, path):
    with visit(chromium, path) as seen:
        page = seen.page
        chapters, here = page.locator(".contents a"), page.locator(".here[aria-current]")
        # The browser reports that it has scrolled at its next frame.
        page.keyboard.press("j")
        page.keyboard.press("j")
        chapters.nth(1).and_(here).wait_for()
        page.keyboard.press("k")
        chapters.nth(0).and_(here).wait_for()
        assert here.count() == 1
