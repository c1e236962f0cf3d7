"""Docstrings with equations: every formula parses, and none is left as plain text."""

import ast
import re
from pathlib import Path

import pytest

import npllm
from npllm.pages.book import chapter_files
from npllm.pages.markup import to_html

PACKAGE = Path(npllm.__file__).parent
REFERENCE = [path.relative_to(PACKAGE).as_posix() for path in (PACKAGE / "reference").glob("*.py")]
OTHERS = ["model/lora.py", "finetuning/classifier.py", "rlhf/divergence.py", "rlhf/reward_curves.py"]
FILES = sorted({*chapter_files(), *REFERENCE, *OTHERS})
FORMULAS_AND_CODE = re.compile(r"\$\$\n.*?\$\$|\$[^$]+\$|`[^`]+`", re.DOTALL)
# An equation, an index, a power or a function that is neither a formula nor code. The
# only equations of a sentence say what an argument means: "None = zeros".
PSEUDO = re.compile(r"(?<!None)(?<!-1) = |\w\^|\w\[\w|\bsum_\w|\b(?:sqrt|exp|log|max|tanh|mean)\(| @ | \* |->|<=|>=")


def docstrings(file: str) -> list[str]:
    tree = ast.parse((PACKAGE / file).read_text(encoding="utf-8"))
    kinds = ast.Module | ast.FunctionDef | ast.ClassDef
    return [text for node in ast.walk(tree) if isinstance(node, kinds) and (text := ast.get_docstring(node))]


def pseudo_equations(text: str) -> list[str]:
    return [line for line in FORMULAS_AND_CODE.sub("", text).splitlines() if PSEUDO.search(line)]


@pytest.mark.parametrize("file", FILES)
def test_every_formula_parses_and_none_is_left_as_text(file):
    for text in docstrings(file):
        html = to_html(text)
        assert "$" not in html
        assert html.count("<math") == len(re.findall(r"\$\$\n.*?\$\$|\$[^$]+\$", text, flags=re.DOTALL))
        assert pseudo_equations(text) == []


@pytest.mark.parametrize(
    "text",
    ["y = x W + b", "the slope 2 x^2", "y[b,t] is", "1 / sqrt(D)", "dx is dz @ W.T", "sum_i x", "0 <= rate", "x -> y"],
)
def test_a_pseudo_equation_is_seen(text):
    assert pseudo_equations(f"Forward.\n\n    {text}\n")


def test_formulas_stay_in_their_lines():
    """A formula is good to read as text: no commands that only serve its printing."""
    for file in FILES:
        for text in docstrings(file):
            assert re.findall(r"\\(?:left|right|begin|end|mathrm|text|displaystyle|,|;|!)", text) == [], file
