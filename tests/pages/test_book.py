"""The book has every chapter, and its numbers are those of the operations."""

import re

import numpy as np
import pytest

from npllm import reference
from npllm.cli import main
from npllm.pages import book
from npllm.pages.worked_examples import Draw
from npllm.pages.worked_steps import EXAMPLES

MOST_BYTES = 5_000_000
FEWEST_ERRORS = 70
LARGEST_ERROR = 1e-8  # right gradients agree with differences to 1e-10


def section(html: str, anchor: str) -> str:
    return re.search(rf'<section id="{anchor}">(.*?)</section>', html, flags=re.DOTALL)[1]


def test_the_order_is_that_of_the_readme_with_the_whole_network_last():
    files = book.chapter_files()
    assert files[:3] == ["reference/linear.py", "reference/gelu.py", "reference/layernorm.py"]
    assert files[-2:] == ["reference/block.py", "reference/transformer.py"]
    assert len(set(files)) == len(files)
    assert {"tokenizer/naive_bpe.py", "rlhf/losses.py", "rlhf/advantages.py", "reference/adam.py"} <= set(files)


def test_every_operation_of_the_reference_has_a_chapter():
    modules = {getattr(reference, name).__module__ for name in reference.__all__}
    files = {"npllm." + file.removesuffix(".py").replace("/", ".") for file in book.chapter_files()}
    assert modules <= files


def test_every_chapter_has_an_example_and_no_example_is_left_over():
    assert EXAMPLES.keys() == set(book.chapter_files())


def test_every_gradient_of_the_page_agrees_with_differences(book_html):
    errors = re.findall(r'<td class="error">([^<]+)</td>', book_html)
    assert len(errors) > FEWEST_ERRORS
    assert max(map(float, errors)) < LARGEST_ERROR


def test_the_numbers_of_the_page_are_those_of_the_operation(book_html):
    draw = Draw(1)
    x, weight, bias = draw(2, 3), draw(3, 2), draw(2)
    y, _ = reference.linear_forward(x, weight, bias)
    text = re.sub(r"<[^>]+>", "", section(book_html, "linear"))
    assert book.numbers(np.array([[0.25, -1.00004], [-1e-9, 3.0]])) == "[[ 0.25 -1.  ]\n [ 0.    3.  ]]"
    for array in (x, weight, bias, y):
        assert book.numbers(array) in text


def test_a_chapter_shows_code_with_its_file_and_line(book_html):
    text = section(book_html, "linear")
    line = int(re.search(r"npllm/reference/linear\.py, line (\d+)", text)[1])
    code = re.sub(r"<[^>]+>", "", re.search(r"<pre class=\"code\".*?</pre>", text, flags=re.DOTALL)[0])
    lines = (book.PACKAGE / "reference/linear.py").read_text(encoding="utf-8").splitlines()
    assert code.splitlines()[0] == lines[line - 1]
    assert "dweight += x.T @ dz" in code


def test_the_verb_writes_one_small_file(tmp_path, capsys, monkeypatch, book_html):
    monkeypatch.setattr(book, "book_page", lambda: book_html)
    path = tmp_path / "book.html"
    assert main(["book", "--out", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}: open it in a browser.\n"
    assert [file.name for file in tmp_path.iterdir()] == ["book.html"]
    assert path.read_text(encoding="utf-8") == book_html
    assert path.stat().st_size < MOST_BYTES


@pytest.mark.parametrize("file", ["reference/attention.py", "rlhf/losses.py"])
def test_a_chapter_made_again_is_the_same(file):
    assert book.chapter(file) == book.chapter(file)
