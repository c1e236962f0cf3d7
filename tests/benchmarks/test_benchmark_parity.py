"""`benchmarks parity` with a reader of our own in the place of transformers."""

import os
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import parity
from benchmarks.race import PEERS_PYTHON
from npllm.data.prompt_format import PromptFormat
from npllm.generation import generate_tokens
from npllm.interop import huggingface

pytest.importorskip("safetensors")
pytest.importorskip("ml_dtypes")


def reader(change=lambda facts: None):
    """A reader that computes what a right one would, and then changes it."""

    def set_up(job, *, folder, again, tokens, text, n_prompt, n_tokens):
        model, tokenizer = huggingface.load(folder)
        huggingface.save(model, tokenizer, again)
        greedy = generate_tokens(model, tokens[0][:n_prompt], max_tokens=n_tokens, temperature=0.0)
        facts = {
            "version": "5", "class": "Model", "logits": model.logits(np.array(tokens)), "ids": tokenizer.encode(text),
            "chat": PromptFormat(tokenizer).encode(text), "greedy": list(greedy),
        }  # fmt: skip
        change(facts)
        return facts

    @contextmanager
    def start():
        yield SimpleNamespace(set_up=set_up)

    return SimpleNamespace(start=start)


def row_with(monkeypatch, change=lambda facts: None):
    monkeypatch.setattr(parity, "READER", reader(change))
    monkeypatch.setattr(parity, "FAMILIES", {"Qwen3": parity.FAMILIES["Qwen3"]})
    (row,) = parity.measure()
    return row


def test_a_reader_that_computes_the_same(monkeypatch):
    row = row_with(monkeypatch)
    assert row["largest_difference"] == 0.0
    assert row["largest_logit"] > 1.0
    assert row["same_ids"] is row["same_chat"] is row["same_text"] is row["same_bits_back"] is True
    assert parity.verdict([row]) == ["transformers 5"]
    assert len(parity.tables([row])[0].rows) == 1


@pytest.mark.parametrize(("name", "key"), [("ids", "same_ids"), ("chat", "same_chat"), ("greedy", "same_text")])
def test_what_differs_is_said(monkeypatch, name, key):
    row = row_with(monkeypatch, lambda facts: facts[name].pop())
    same = {"same_ids", "same_chat", "same_text", "same_bits_back"} - {key}
    assert row[key] is False
    assert all(row[other] for other in same)


def test_another_logit_is_found(monkeypatch):
    def change(facts):
        facts["logits"][1, 5, 7] += 0.25

    assert row_with(monkeypatch, change)["largest_difference"] == pytest.approx(0.25, rel=1e-3)


def test_without_transformers_the_row_says_why(monkeypatch):
    monkeypatch.delenv(PEERS_PYTHON, raising=False)
    (line, *_) = parity.verdict(parity.measure())
    assert line == f"GPT-2 was not read: {PEERS_PYTHON} does not name an interpreter that has it"


@pytest.mark.long
@pytest.mark.skipif(PEERS_PYTHON not in os.environ, reason=f"{PEERS_PYTHON} is not set")
def test_transformers_computes_the_same():
    rows = parity.measure()
    if any("failure" in row for row in rows):
        pytest.skip(rows[0]["failure"])
    for row in rows:
        assert row["largest_difference"] < 1e-4 * max(1.0, row["largest_logit"]), row
        assert row["same_ids"], row
        assert row["same_chat"], row
        assert row["same_text"], row
        assert row["same_bits_back"], row
