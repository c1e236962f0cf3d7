"""Where a stream of text ends before a stop text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from npllm.errors import ConfigError
from npllm.generation.stop_texts import before_stop, check_stop

texts = st.text("ab", max_size=12)
stops = st.lists(st.text("ab", min_size=1, max_size=3), max_size=3)


def before_by_definition(text: str, stop: list[str]) -> str:
    """The text before the stop text that ends first; of these, the longest."""
    for end in range(1, len(text) + 1):
        found = [each for each in stop if text[:end].endswith(each)]
        if found:
            return text[: end - max(map(len, found))]
    return text


@given(texts, stops, st.lists(st.integers(1, 4)))
def test_how_the_text_is_divided_changes_nothing(text, stop, lengths):
    """A letter is never shown that belongs to a stop text, and none is lost."""
    pieces = []
    for length in [*lengths, len(text)]:
        pieces.append(text[:length])
        text = text[length:]
    whole = "".join(pieces)
    shown = list(before_stop(pieces, stop))
    assert "".join(shown) == before_by_definition(whole, stop)
    assert "" not in shown


def test_a_letter_that_starts_no_stop_text_is_shown_at_once():
    taken = []

    def pieces():
        for piece in ("x", "a", "y", "ab", "never"):
            taken.append(piece)
            yield piece

    shown = []
    for piece in before_stop(pieces(), ["ab"]):
        shown.append((piece, list(taken)))
    assert shown == [("x", ["x"]), ("ay", ["x", "a", "y"])]
    assert taken == ["x", "a", "y", "ab"]


def test_an_empty_stop_text_is_refused():
    check_stop(["a"])
    with pytest.raises(ConfigError, match="A stop text is empty"):
        check_stop(["a", ""])
