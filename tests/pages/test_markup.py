"""Docstrings become HTML, and their formulas MathML."""

import re

import pytest

from npllm.pages.markup import FormulaError, formula, to_html


def letters(html: str) -> str:
    return re.sub(r"<[^>]+>|\s", "", html)


def test_a_formula_in_a_sentence():
    html = to_html("It is $dx = dz W^T$ here, for 3 < 4.")
    assert html.count("<math") == 1
    assert "<msup>" in html
    assert html.startswith("<p>It is <math")
    assert "3 &lt; 4" in html


def test_a_block_has_a_row_for_each_line_aligned_at_the_first_relation():
    html = to_html("$$\na_{n=1} = b = c    % where $n > 1$\n= d\n- e\n$$")
    rows = re.findall(r"<mtr>(.*?)</mtr>", html, flags=re.DOTALL)
    cells = [[letters(cell) for cell in re.findall(r"<mtd.*?>(.*?)</mtd>", row, flags=re.DOTALL)] for row in rows]
    assert len(rows) == 3
    assert cells[0][0] == "an=1"
    assert cells[0][1] == "=b=c"
    assert "where" in cells[0][-1]
    assert cells[1][:2] == ["", "=d"]
    assert cells[2][0] == ""
    assert cells[2][1].endswith("e")


@pytest.mark.parametrize(
    ("latex", "expected"),
    [
        ("rstd", ["rstd"]),
        ("weight_decay", ["weight_decay"]),
        ("x W", ["x", "W"]),
        ("log_probability_n", ["log_probability", "n"]),
    ],
)
def test_several_letters_are_one_name(latex, expected):
    assert [letters(name) for name in re.findall(r"<mi.*?</mi>", formula(latex))] == expected


def test_a_hat_and_the_d_of_a_gradient():
    assert "<mover" in formula("x_hat")
    assert letters(formula("x_hat_j")).startswith("x")
    upright_d, x = re.findall(r"<mi.*?</mi>", formula("dx"))
    assert upright_d == '<mi mathvariant="normal">d</mi>'
    assert x == "<mi>x</mi>"


def test_html_in_a_docstring_is_text():
    assert "<b>" not in to_html("<b>bold</b> and $x$")


@pytest.mark.parametrize("text", [r"the $\frac{1$ of it", r"$\nosuchcommand$", "$$\nx = 1\n\nno end"])
def test_a_wrong_formula_is_named(text):
    with pytest.raises(FormulaError, match="formula"):
        to_html(text)
