"""`benchmarks parity` with a stand-in for lm_eval that reads its files by itself."""

import json
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import npllm
from benchmarks import parity, parity_lm_eval
from benchmarks.race import PEERS_PYTHON, Contender
from npllm.interop import huggingface
from npllm.interop.harness import Answers

pytest.importorskip("safetensors")
pytest.importorskip("ml_dtypes")


def found_by(model, tokenizer, tasks, group, pairs, texts, prompts):
    """What the harness would find."""
    answers, accuracy = Answers(model, tokenizer), {}
    for path in sorted(Path(tasks).glob("*.jsonl")):
        documents = list(map(json.loads, path.read_text().splitlines()))
        likelihoods = answers.likelihoods([("", choice) for each in documents for choice in each["choices"]])
        values = np.array([each.log_probability for each in likelihoods]).reshape(-1, 2)
        accuracy[path.stem] = (values.argmax(axis=1) == [each["label"] for each in documents]).tolist()
    every = [hit for hits in accuracy.values() for hit in hits]
    return {
        "accuracy": {name: sum(hits) / len(hits) for name, hits in (accuracy | {group: every}).items()},
        "likelihoods": [list(each) for each in answers.likelihoods(pairs)],
        "whole": answers.whole_likelihoods(texts),
        "texts": [answers.continuation(*prompt) for prompt in prompts],
    }


def test_the_same_is_found(monkeypatch):
    def set_up(job, *, run, folder, **questions):
        ours, exported = npllm.load(run), huggingface.load(folder)
        found = {"npllm": found_by(*ours, **questions), "transformers": found_by(*exported, **questions)}
        return {"version": "4", **found}

    @contextmanager
    def start(contender):
        yield SimpleNamespace(set_up=set_up)

    monkeypatch.setattr(Contender, "start", start)
    rows = parity_lm_eval.measure()
    assert [row["family"] for row in rows] == ["object for npllm", "object for transformers"]
    assert parity.wrong(rows) == []
    assert parity.verdict(rows) == ["lm_eval 4"]
    assert len(parity.tables(rows)[0].rows) == 2


OURS = {"accuracy": {"all": 0.5, "one": 0.25}, "greedy": [True, False], "numbers": [-3.0, -4.0, -9.5], "texts": ["a"]}
THEIRS = {
    "accuracy": {"all": 0.5, "one": 0.25}, "likelihoods": [[-3.0, True], [-4.0001, False]], "whole": [-9.5],
    "texts": ["a"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("accuracy", {"all": 0.5, "one": 0.251}, ["x differs: accuracy"]),
        ("accuracy", {"all": 0.5}, ["x differs: accuracy"]),
        ("texts", ["b"], ["x differs: text"]),
        ("likelihoods", [[-3.0, True], [-4.0, True]], ["x differs: greedy"]),
        ("likelihoods", [[-3.25, True], [-4.0, False]], ["x differs: logits (by 2.5e-01)"]),
        ("whole", [-9.0], ["x differs: logits (by 5.0e-01)"]),
        ("whole", [-9.5], []),
    ],
)
def test_what_differs_is_said(name, value, complaint):
    row = {"family": "x", **parity_lm_eval.row_of(THEIRS | {name: value}, OURS)}
    assert parity.wrong([row]) == complaint


def test_without_lm_eval_the_rows_say_why(monkeypatch):
    monkeypatch.delenv(PEERS_PYTHON, raising=False)
    (line, *_) = parity.verdict(parity_lm_eval.measure())
    assert line == (f"lm_eval took no part: {PEERS_PYTHON} does not name an interpreter that has it")
