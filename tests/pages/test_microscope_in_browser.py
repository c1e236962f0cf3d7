"""The page of the microscope in a real browser, with JavaScript and without."""

import pytest
from browser import DESKTOP, PHONE, assert_opens_soundly, serious_violations, visit
from microscope_cases import EVERY, small_subject

from npllm.pages import kernel_times
from npllm.pages.microscope import microscope_page
from npllm.pages.page import write_page
from npllm.pages.training_step import look_at


@pytest.fixture(scope="module")
def path(chromium, tmp_path_factory):  # without a browser there is no need to make it
    path = tmp_path_factory.mktemp("microscope") / "microscope.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel_times, "LARGE_MATRIX", 32)
        patch.setattr(kernel_times, "LARGE_ARRAY", 1024)
        write_page(path, microscope_page(look_at(small_subject("a <b>", **EVERY["qwen"], n_layer=1))))
    return path


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_it_opens_without_errors_and_connects_to_nothing(chromium, path, width):
    assert_opens_soundly(chromium, path, width)


def test_formulas_and_pictures_are_there(chromium, path):
    """A layer of eleven operations, the embedding, the final norm and the loss."""
    with visit(chromium, path) as seen:
        page = seen.page
        assert page.locator("section.operation").count() == 14
        assert page.locator(".operation .formula math").count() >= 15
        assert page.locator("math merror").count() == 0
        assert page.locator("svg.head").count() == 2
        assert page.locator("img.heat-map").count() == 2 * (14 + 1)  # and the stream between the branches
        assert page.evaluate("() => [...document.images].every((image) => image.complete && image.naturalWidth > 0)")


def test_a_click_on_a_tensor_marks_it_everywhere(chromium, path):
    with visit(chromium, path) as seen:
        page = seen.page
        page.locator("#op-blocks-0-mlp-up a[data-mark=tensor-blocks-0-norm_2]").first.click()
        # Its own pictures, and what reads it.
        marked = page.locator(".marked")
        sections = marked.evaluate_all("all => [...new Set(all.map((each) => each.closest('section').id))]")
        assert sections == ["op-blocks-0-norm_2", "op-blocks-0-mlp-up", "op-blocks-0-mlp-gate"]
        assert page.locator(".marked:not([data-mark=tensor-blocks-0-norm_2])").count() == 0
        page.keyboard.press("Escape")
        assert marked.count() == 0


def test_a_click_on_a_token_opens_what_its_loss_sends_back(chromium, path):
    with visit(chromium, path) as seen:
        page = seen.page
        assert not page.locator("#sent-3 table").is_visible()
        page.locator(".token").nth(3).click()
        assert page.locator("#sent-3 table").is_visible()
        assert page.locator("#sent-3.marked").count() == 1


def test_the_pointer_on_a_cell_shows_its_two_tokens(chromium, path):
    """Fails if the tokens are exchanged, or are those of another cell."""
    with visit(chromium, path) as seen:
        page = seen.page
        words = page.locator(".token").all_inner_texts()
        box, n = page.locator("svg.head").nth(1).bounding_box(), len(words)
        caption = page.locator(".heads figcaption").nth(1)

        def move_to(row, column):
            page.locator("svg.head").nth(1).hover(
                position={"x": (column + 0.5) * box["width"] / n, "y": (row + 0.5) * box["height"] / n}
            )

        move_to(3, 1)
        assert caption.inner_text().startswith(f"head 1: {words[3]} → {words[1]}: 0.")
        move_to(1, 3)  # the future is not seen
        assert caption.inner_text() == "head 1"


def test_it_is_readable_without_javascript(chromium, path):
    with visit(chromium, path, javascript=False) as seen:
        page = seen.page
        assert "Causal multi-head attention" in page.inner_text("#op-blocks-0-attention")
        page.locator("#sent-2 summary").click()
        assert page.locator("#sent-2 table").is_visible()
        assert "lm_head" in page.inner_text("#update")


@pytest.mark.parametrize(("width", "dark"), [(DESKTOP, False), (PHONE, True)])
def test_axe_finds_nothing_serious(chromium, path, width, dark):
    """Without the colours of the code, which are the book's: they take axe a minute."""
    with visit(chromium, path, width=width, dark=dark) as seen:
        seen.page.evaluate("() => document.querySelectorAll('pre.code').forEach((e) => e.textContent = e.textContent)")
        assert serious_violations(seen.page) == []
