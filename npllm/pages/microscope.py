"""The page `npllm microscope`: one training step, operation by operation."""

import inspect
from math import inf, log
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from npllm.model.inspection import Inspection
from npllm.output import printable
from npllm.pages import backward_lens
from npllm.pages.markup import to_html
from npllm.pages.operation_views import anchor_of, operation_views
from npllm.pages.packages import package
from npllm.pages.page import check_page, render, write_page
from npllm.pages.pictures import heat_map
from npllm.pages.subject import subject_of
from npllm.pages.training_step import Microscope, look_at
from npllm.tokenizer import Tokenizer

MOST_CELLS = 20_000  # of the attention, with a title each; of a larger model heads are plain pictures
SIGNS = str.maketrans({" ": "␣", "\n": "⏎", "\r": "⏎", "\t": "⇥"})
LONGEST_WORD = 24  # characters of a token


class Token(NamedTuple):
    """A token of the line. loss: of predicting it from those before it, and after the
    step; None for the first token. share: of the largest loss."""

    word: str
    loss: float | None
    after: float | None
    share: float


def write_microscope(name: str, text: str | None, out: Path, console: Console) -> None:
    """Write the page of a run, or of a recipe, and of a text; None = a line of it."""
    check_page(out)
    with console.status("preparing") as status:
        subject = subject_of(name, text, status.update)
        seen = look_at(subject, status.update)
        status.update("writing the page")
        write_page(out, microscope_page(seen))


def microscope_page(seen: Microscope) -> str:
    """Return the page as HTML."""
    subject, operations = seen.subject, operation_views(seen)
    words = [shown(subject.tokenizer, i) for i in subject.ids]
    contents = [("text", "The text"), *((anchor_of(view.name), view.name) for view in operations)]
    contents += [("attention", "Attention"), ("sent-back", "What each loss sends back")]
    contents += [("lens", "Backward lens"), ("update", "After the update"), ("cost", "Time and memory")]
    return render(
        "microscope.html",
        contents=contents,
        seen=seen,
        model=subject.model,
        optimizer=type(subject.optimizer).__name__,
        words=words,
        chance=log(subject.model.config.vocab_size),
        tokens=token_row(words, seen.inside, seen.step.after),
        operations=operations,
        largest={field: _largest(operations, field) for field in ("seconds", "flops", "kept_bytes")},
        heads=attention_pictures(seen.inside, words),
        shown=lambda i: shown(subject.tokenizer, i),
        worst=max(seen.errors.values()),
        after=float(seen.step.after.sum()) / (len(words) - 1),
        lens_text=to_html(inspect.cleandoc(backward_lens.__doc__).partition("\n\n")[2]),
        infinity=inf,
    )


def _largest(operations: list, field: str) -> float:
    return max(getattr(view.bars, field) for view in operations) or 1.0


def shown(tokenizer: Tokenizer, i: int) -> str:
    """Return a token as a word on the page, where white space can be seen.

    A byte that is only a part of a character is an escape, such as \\xe2.
    """
    text = printable(tokenizer.decode_bytes([i]).decode("utf-8", "backslashreplace").translate(SIGNS))
    return text if len(text) <= LONGEST_WORD else text[: LONGEST_WORD - 1] + "…"


def token_row(words: list[str], inside: Inspection, after: np.ndarray) -> list[Token]:
    """Return the tokens of the line with their losses."""
    losses = inside.losses[0]
    largest = float(losses.max()) or 1.0
    predicted = [
        Token(word, float(losses[i]), float(after[i]), float(losses[i]) / largest) for i, word in enumerate(words[1:])
    ]
    return [Token(words[0], None, None, 0.0), *predicted]


def attention_pictures(inside: Inspection, words: list[str]) -> list[list[Any]]:
    """Return a picture of each head of each layer.

    A row is a token that looks, a column one that it sees.
    """
    attention = inside.attention[:, 0]  # (L, H, T, T)
    L, H, T, _ = attention.shape
    draw = _cells if L * H * T * (T + 1) // 2 <= MOST_CELLS else _plain
    return [[draw(attention[layer, head], words, layer, head) for head in range(H)] for layer in range(L)]


def _plain(weights: np.ndarray, words: list[str], layer: int, head: int) -> Any:
    return heat_map(weights, f"attention of layer {layer}, head {head}")


def _cells(weights: np.ndarray, words: list[str], layer: int, head: int) -> Any:
    """A picture whose cells have titles: which token looks at which, and how much."""
    markup, T = package("markupsafe").Markup, len(words)
    cells = [
        markup('<rect x="{}" y="{}" fill-opacity="{}"><title>{} → {}: {}</title></rect>').format(
            j, i, f"{weights[i, j]:.2f}", words[i], words[j], f"{weights[i, j]:.3f}"
        )
        for i in range(T)
        for j in range(i + 1)
    ]
    label = f"Attention of layer {layer}, head {head}: {T} tokens look at the {T} tokens; each cell has a title"
    return markup('<svg class="head" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        T, T, label, markup("").join(cells)
    )
