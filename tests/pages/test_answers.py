"""Answers before and after a later stage: whose they are, and to which prompts."""

import numpy as np
import pytest
from small_runs import run
from stage_runs import DEMONSTRATIONS, pretrained, stage_arguments, write_jsonl

import npllm
from npllm.data.prompt_format import PromptFormat
from npllm.pages.answers import answers
from npllm.runs.run_folder import RunFolder

N = 8  # tokens, which are characters


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A pretraining and a fine-tuning from it."""
    folder = tmp_path_factory.mktemp("runs")
    base, data = pretrained(folder), write_jsonl(folder / "data.jsonl", DEMONSTRATIONS)
    assert run(*stage_arguments("sft", base, folder / "sft", data=data)) == 0
    return base, folder / "sft"


def likeliest(path, prompt: str) -> str:
    """The N characters that the model of a run finds likeliest after a prompt."""
    model, tokenizer = npllm.load(path)
    ids = PromptFormat(tokenizer).encode(prompt)
    for _ in range(N):
        ids = [*ids, int(np.argmax(model.logits(np.array([ids]))[0, -1]))]
    return tokenizer.decode(ids[-N:])


def test_the_answers_are_those_of_the_first_and_the_newest_model(runs):
    """Fails if the models are exchanged, are one model, or answer another prompt."""
    base, tuned = runs
    (found,) = answers(RunFolder(tuned), "sft")
    assert {"prompt": found.prompt, "response": found.wanted[0]} in DEMONSTRATIONS
    assert found.before[:N] == likeliest(base, found.prompt)
    assert found.after[:N] == likeliest(tuned, found.prompt)
    assert found.before[:N] != found.after[:N]


def test_a_stage_whose_model_writes_nothing_has_no_answers(runs):
    assert answers(RunFolder(runs[1]), "reward") == []
