"""The model object of lm_eval, with a stand-in for the few names that it imports.

`python -m benchmarks parity` runs the real harness."""

import importlib
import sys
from types import ModuleType, SimpleNamespace

import pytest

import npllm
from npllm.errors import ConfigError
from npllm.interop.harness import Answers
from npllm.model import GPT, ModelConfig
from npllm.tokenizer import byte_tokenizer

MODULE = "npllm.interop.lm_eval"


def module(name: str, **names) -> ModuleType:
    made = ModuleType(name)
    vars(made).update(names)
    return made


@pytest.fixture
def lm_eval(monkeypatch):
    """Our module, imported with the stand-in."""
    for stand_in in (
        module("lm_eval"),
        module("lm_eval.api"),
        module("lm_eval.api.instance", Instance=object),
        module("lm_eval.api.model", LM=type("LM", (), {})),
        module("lm_eval.api.registry", register_model=lambda name: lambda kind: kind),
        module(
            "lm_eval.utils", simple_parse_args_string=lambda text: dict(part.split("=") for part in text.split(","))
        ),
    ):
        monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    yield importlib.import_module(MODULE)
    sys.modules.pop(MODULE)


@pytest.fixture
def model():
    return GPT(ModelConfig(n_layer=1, n_head=1, n_embd=8, block_size=16, vocab_size=byte_tokenizer().vocab_size))


def requests(*arguments):
    return [SimpleNamespace(args=each) for each in arguments]


def test_requests_are_answered_in_order(lm_eval, model):
    lm, answers = lm_eval.NpllmLM(model, byte_tokenizer(), batch_size=2), Answers(model, byte_tokenizer())
    pairs = [("a", "bcd"), ("", "e"), ("long context", "f")]
    assert lm.loglikelihood(requests(*pairs)) == [tuple(each) for each in answers.likelihoods(pairs)]
    assert lm.loglikelihood_rolling(requests(("abc",), ("d" * 40,))) == answers.whole_likelihoods(["abc", "d" * 40])
    settings = {"temperature": 1.0, "max_gen_toks": 5}
    texts = lm.generate_until(requests(("a", settings), ("a", settings)))
    assert texts == [answers.continuation("a", settings, number) for number in (0, 1)]
    assert texts[0] != texts[1]


def test_a_run_by_its_arguments(lm_eval, model, tmp_path):
    npllm.save(model, byte_tokenizer(), tmp_path / "saved")
    harness = {"batch_size": "auto:4", "max_batch_size": None, "device": "cuda"}
    lm = lm_eval.NpllmLM.create_from_arg_obj({"run": tmp_path / "saved", "seed": 3}, harness)
    assert (lm.answers.seed, lm.answers.rows) == (3, Answers(model, byte_tokenizer()).rows)
    assert (lm.answers.model.params.flat == model.params.flat).all()
    lm = lm_eval.NpllmLM.create_from_arg_string(f"run={tmp_path / 'saved'}", {"batch_size": 5})
    assert lm.answers.rows == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "model_args names no run; write run=RUN."),
        ({"run": "r", "pretrained": "x"}, "model_args has 'pretrained'; "),
    ],
)
def test_arguments_that_are_wrong(lm_eval, arguments, message):
    with pytest.raises(ConfigError, match=message):
        lm_eval.NpllmLM.create_from_arg_obj(arguments)
