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
LARGEST_ERROR = 1e-8  # right gradients agree with differences to 1e-10


@pytest.fixture(scope="module")
def html():
    return book.book_page()


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


@pytest.mark.parametrize("file", EXAMPLES)
def test_the_gradients_of_an_example_agree_with_differences(file):
    rows = EXAMPLES[file]().rows
    assert rows
    assert all(row.error < LARGEST_ERROR for row in rows if row.error is not None)


def test_the_numbers_of_the_page_are_those_of_the_operation(html):
    draw = Draw(1)
    x, weight, bias = draw(2, 3), draw(3, 2), draw(2)
    y, _ = reference.linear_forward(x, weight, bias)
    text = re.sub(r"<[^>]+>", "", section(html, "linear"))
    for array in (x, weight, bias, y):
        assert np.array2string(array, precision=4, suppress_small=True, separator=" ") in text


def test_a_chapter_shows_code_with_its_file_and_line(html):
    text = section(html, "linear")
    line = int(re.search(r"npllm/reference/linear\.py, line (\d+)", text)[1])
    code = re.sub(r"<[^>]+>", "", re.search(r"<pre class=\"code\".*?</pre>", text, flags=re.DOTALL)[0])
    lines = (book.PACKAGE / "reference/linear.py").read_text(encoding="utf-8").splitlines()
    assert code.splitlines()[0] == lines[line - 1]
    assert "dweight += x.T @ dz" in code


def test_the_verb_writes_one_small_file(tmp_path, capsys):
    path = tmp_path / "book.html"
    assert main(["book", "--out", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}: open it in a browser.\n"
    assert [file.name for file in tmp_path.iterdir()] == ["book.html"]
    assert path.stat().st_size < MOST_BYTES


def test_two_books_are_the_same(html):
    assert book.book_page() == html
