r"""From a docstring to HTML: Markdown with LaTeX, whose formulas become MathML.

`npllm/reference/README.md` describes the notation under "Notation". In short: a formula
in a sentence stands between dollars, and a block of formulas between two lines `$$`,
one formula a line. Words of several letters are names of the code. Text after `%` is a
remark on the formula of its line.
"""

import re
from functools import cache
from typing import Any

from npllm.pages.packages import package

# A command, or a name of the code: two letters or more, perhaps with underscores.
WORDS = re.compile(r"(\\[A-Za-z]+)|([A-Za-z]+(?:_[A-Za-z]{2,})+|[A-Za-z]{2,})")
RELATION = re.compile(r"=|\\(?:approx|propto|le|ge|to|sim)\b")
CONTINUES = re.compile(r"[-+]")  # a line that starts so belongs to the formula above it
NAME = r"\\mathrm\{(?:\w|\\_){2,}\}(?:[_^](?:\w|\{[^}]*\}))*"
FACTOR = r"[\w({]|\\(?!cdot|times|le|ge|to|approx|propto|sim|oplus)"  # what a factor may begin with
# The spaces of a product with a name, after it and before it, but none after a command.
AROUND_NAMES = re.compile(rf"({NAME}) +(?={FACTOR})|(\\[A-Za-z]+) +(?=\\mathrm)|(?<=[\w}})]) +(?=\\mathrm)")


class FormulaError(ValueError):
    """A formula that is not in the notation; the message names it."""


def to_html(text: str) -> Any:
    """Return a text in Markdown with formulas as HTML (`Markup`).

    HTML in the text is escaped. Raises FormulaError.
    """
    return package("markupsafe").Markup(_markdown().render(text))


def formula(latex: str, *, block: bool = False) -> Any:
    """Return the MathML of one formula, or of the lines of a block (`Markup`).

    Raises FormulaError.
    """
    prepared = _rows(latex) if block else _with_names(latex)
    math_core = package("math_core")
    try:
        mathml = _converter().convert_with_local_state(prepared, displaystyle=block)
    except math_core.LatexError as error:
        raise FormulaError(f"{error} in the formula {latex!r}") from None
    return package("markupsafe").Markup(mathml)


@cache
def _converter() -> Any:
    return package("math_core").LatexToMathML()


@cache
def _markdown() -> Any:
    """The reader of Markdown, with a rule for formulas in a sentence and for blocks."""
    markdown = package("markdown_it").MarkdownIt("commonmark", {"html": False}).enable("table")
    markdown.inline.ruler.before("escape", "formula", _formula_in_sentence)
    interrupts = {"alt": ["paragraph", "reference", "blockquote", "list"]}
    markdown.block.ruler.before("fence", "formulas", _block_of_formulas, interrupts)
    markdown.add_render_rule("formula", lambda _, tokens, i, *__: formula(tokens[i].content))
    markdown.add_render_rule("formulas", lambda _, tokens, i, *__: _displayed(tokens[i].content))
    markdown.add_render_rule("code_block", lambda _, tokens, i, *__: _preformatted(tokens[i].content))
    return markdown


def _displayed(latex: str) -> str:
    # A wide formula scrolls by itself, also with the keyboard.
    return f'<div class="formula" tabindex="0" role="group" aria-label="Formulas">{formula(latex, block=True)}</div>\n'


def _preformatted(text: str) -> str:
    return f'<pre tabindex="0"><code>{package("markupsafe").escape(text)}</code></pre>\n'


def _formula_in_sentence(state: Any, silent: bool) -> bool:
    """A rule of markdown-it: $ ... $, within one paragraph."""
    end = state.src.find("$", state.pos + 1)
    if state.src[state.pos] != "$" or end < 0:
        return False
    if not silent:
        state.push("formula", "math", 0).content = state.src[state.pos + 1 : end]
    state.pos = end + 1
    return True


def _block_of_formulas(state: Any, start: int, end: int, silent: bool) -> bool:
    """A rule of markdown-it: lines between two lines `$$`."""

    def line(number: int) -> str:
        return state.src[state.bMarks[number] + state.tShift[number] : state.eMarks[number]].strip()

    if line(start) != "$$":
        return False
    if silent:
        return True
    last = next((number for number in range(start + 1, end) if line(number) == "$$"), None)
    if last is None:
        raise FormulaError(f"the block of formulas has no second $$: {line(start + 1)!r}")
    token = state.push("formulas", "math", 0)
    token.content = "\n".join(line(number) for number in range(start + 1, last))
    state.line = last + 1
    return True


def _rows(latex: str) -> str:
    """The lines of a block as rows of LaTeX, aligned at their first relation."""
    rows = []
    for line in filter(None, map(str.strip, latex.splitlines())):
        body, _, remark = line.partition("%")
        relation = next((found for found in RELATION.finditer(body) if _outside_braces(body[: found.start()])), None)
        if relation:
            left, right = body[: relation.start()], body[relation.start() :]
        else:
            left, right = ("", rf"\quad {body}") if CONTINUES.match(body) else (body, "")
        rows.append(f"{_with_names(left)} & {_with_names(right)} {_remark(remark.strip())}")
    return r"\begin{aligned}" + r" \\ ".join(rows) + r"\end{aligned}"


def _outside_braces(before: str) -> bool:
    return before.count("{") == before.count("}")


def _remark(text: str) -> str:
    """A remark as LaTeX in a column of its own. Formulas in it are between dollars."""
    if not text:
        return ""
    parts = [_with_names(part) if i % 2 else rf"\text{{{part}}}" for i, part in enumerate(text.split("$")) if part]
    return r"&& \qquad " + "".join(parts)


def _with_names(latex: str) -> str:
    """LaTeX in which names of the code are set as names, with space around them."""

    def spaced(match: re.Match[str]) -> str:
        name, command = match.groups()
        return f"{command} " if command else rf"{name or ''}\, "

    return AROUND_NAMES.sub(spaced, WORDS.sub(_named, latex))


def _named(match: re.Match[str]) -> str:
    """A command as it is, dx with an upright d, x_hat with a hat, a name upright."""
    command, word = match.groups()
    if command:
        return command
    if len(word) == 2 and word[0] == "d":
        return rf"{{\mathrm{{d}}{word[1]}}}"
    if word[1:] == "_hat":
        return rf"\hat{{{word[0]}}}"
    return r"\mathrm{" + word.replace("_", r"\_") + "}"
