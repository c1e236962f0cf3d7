"""`benchmarks parity` with readers of our own in the place of other libraries."""

import os
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import cli, parity, parity_gguf, parity_lm_eval
from benchmarks.race import PEERS_PYTHON
from npllm.data.prompt_format import PromptFormat
from npllm.data.records import Message
from npllm.generation import generate_tokens
from npllm.interop import huggingface

pytest.importorskip("safetensors")
pytest.importorskip("ml_dtypes")

SAME = ["same_ids", "same_chat", "same_stop", "same_text", "same_bits_back"]


def right_answers(model, tokenizer, *, tokens, texts, chat, n_prompt, n_tokens):
    greedy = list(generate_tokens(model, tokens[0][:n_prompt], max_tokens=n_tokens, temperature=0.0))
    asked = PromptFormat(tokenizer)
    return {
        "version": "5", "class": "Model", "logits": model.logits(np.array(tokens)),
        "ids": list(map(tokenizer.encode, texts)), "chat": asked.encode([Message(*message) for message in chat]),
        "stop": [asked.stop_id()] * 2, "greedy": greedy, "text": tokenizer.decode(greedy),
    }  # fmt: skip


def starting(name, answer, change):
    """A contender that changes its answers."""

    def set_up(job, **settings):
        facts = answer(**settings)
        change(facts)
        return facts

    @contextmanager
    def start():
        yield SimpleNamespace(set_up=set_up)

    return SimpleNamespace(start=start, name=name)


def reader(change=lambda facts: None):
    """A reader that computes what a right one would, and then changes it."""

    def answer(*, folder, again, **questions):
        model, tokenizer = huggingface.load(folder)
        huggingface.save(model, tokenizer, again)
        return right_answers(model, tokenizer, **questions)

    return starting("transformers", answer, change)


def row_with(monkeypatch, change=lambda facts: None):
    monkeypatch.setattr(parity, "READER", reader(change))
    monkeypatch.setattr(parity, "FAMILIES", {"Qwen3": parity.FAMILIES["Qwen3"]})
    (row,) = parity.measure()
    return row


def test_a_reader_that_computes_the_same(monkeypatch):
    row = row_with(monkeypatch)
    assert row["largest_difference"] == 0.0
    assert row["largest_logit"] > 1.0
    assert [name for name, same in row.items() if same is True] == SAME
    assert parity.wrong([row]) == []
    assert parity.verdict([row]) == ["transformers 5"]
    assert len(parity.tables([row])[0].rows) == 1


@pytest.mark.parametrize(
    ("name", "key"), [("ids", "same_ids"), ("chat", "same_chat"), ("stop", "same_stop"), ("greedy", "same_text")]
)
def test_what_differs_is_said(monkeypatch, name, key):
    row = row_with(monkeypatch, lambda facts: facts[name].pop())
    assert [name for name in SAME if not row[name]] == [key]
    assert parity.wrong([row]) == [f"Qwen3 differs: {key.removeprefix('same_')}"]


def test_another_logit_is_found(monkeypatch):
    def change(facts):
        facts["logits"][1, 5, 7] += 0.25

    row = row_with(monkeypatch, change)
    assert row["largest_difference"] == pytest.approx(0.25, rel=1e-3)
    assert parity.wrong([row]) == ["Qwen3 differs: logits (by 2.5e-01)"]
    assert parity.wrong([row | {"largest_difference": float("nan")}]) == ["Qwen3 differs: logits (by nan)"]


def test_the_command_fails_where_something_differs(monkeypatch):
    row = row_with(monkeypatch) | {"same_chat": False}
    monkeypatch.setattr(parity, "measure", lambda: [row])
    monkeypatch.setattr(parity_gguf, "measure", list)
    monkeypatch.setattr(parity_lm_eval, "measure", list)
    monkeypatch.setattr(cli, "introduce", lambda *_: {})
    with pytest.raises(SystemExit, match="Qwen3 differs: chat"):
        cli.main(["parity"])


def test_without_transformers_the_row_says_why(monkeypatch):
    monkeypatch.delenv(PEERS_PYTHON, raising=False)
    (line, *_) = parity.verdict(parity.measure())
    assert line == f"transformers took no part: {PEERS_PYTHON} does not name an interpreter that has it"


def test_files_of_three_types_are_compared(monkeypatch):
    """With a reader that ignores its file and computes what a right one would. Each
    type has its own tolerance."""
    pytest.importorskip("gguf")

    def answer(*, path, **questions):
        return right_answers(*parity.example("Qwen3"), **questions)

    monkeypatch.setattr(parity_gguf, "READER", starting("llama.cpp", answer, lambda facts: None))
    monkeypatch.setattr(parity, "FAMILIES", {"Qwen3": parity.FAMILIES["Qwen3"]})
    rows = parity_gguf.measure()
    assert [row["family"] for row in rows] == ["Qwen3, f32", "Qwen3, f16", "Qwen3, q8_0"]
    assert ["same_text" in row for row in rows] == [True, False, False]
    assert parity.wrong(rows) == []
    assert parity.verdict(rows) == ["llama.cpp 5"]
    assert len(parity.tables(rows)[0].rows) == 3
    for row in rows:
        row["largest_difference"] = 0.005
    assert parity.wrong(rows) == ["Qwen3, f32 differs: logits (by 5.0e-03)"]


@pytest.mark.long
@pytest.mark.skipif(PEERS_PYTHON not in os.environ, reason=f"{PEERS_PYTHON} is not set")
@pytest.mark.parametrize("reader", [parity, parity_gguf, parity_lm_eval], ids=["transformers", "llama.cpp", "lm_eval"])
def test_others_compute_the_same(reader):
    rows = reader.measure()
    if any("failure" in row for row in rows):
        pytest.skip(rows[0]["failure"])
    assert parity.wrong(rows) == []
