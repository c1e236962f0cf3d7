"""/v1/completions: the same texts as npllm generate, in OpenAI's form."""

import numpy as np
import pytest
from serve.serving import serving
from small_runs import run

import npllm
from npllm.rlhf.divergence import log_softmax

TEXT = {"prompt": "the cat", "max_tokens": 12, "temperature": 0.8, "seed": 3}


@pytest.fixture(scope="module")
def server(base):
    with serving(base) as started:
        yield started


def texts(answer: dict) -> list[str]:
    return [choice["text"] for choice in answer["choices"]]


def test_a_text_is_the_one_of_npllm_generate(server, base, capsys):
    capsys.readouterr()
    assert run("generate", base, "--prompt", "the cat", "--max_tokens", 12, "--seed", 3, "--top_p", 0.9) == 0
    answer = server.complete(**TEXT, top_p=0.9)
    assert texts(answer) == [capsys.readouterr().out[len("the cat") : -1]]
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"] == {"prompt_tokens": 7, "completion_tokens": 12, "total_tokens": 19}
    assert (answer["object"], answer["model"]) == ("text_completion", "pretrained")


def test_several_prompts_and_texts_come_in_order(server):
    """Each equals the one that is asked for without the other prompt."""
    answer = server.complete(**TEXT | {"prompt": ["the cat", "a dog"]}, n=2)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    alone = [server.complete(**TEXT | {"prompt": prompt}, n=2) for prompt in ("the cat", "a dog")]
    assert texts(answer) == texts(alone[0]) + texts(alone[1])
    assert texts(answer)[0] != texts(answer)[1]
    assert answer["usage"]["prompt_tokens"] == 7 + 5


def test_token_ids_are_a_prompt(server, base):
    ids = npllm.load(base)[1].encode("the cat")
    assert texts(server.complete(**TEXT | {"prompt": ids})) == texts(server.complete(**TEXT))
    assert texts(server.complete(**TEXT | {"prompt": [ids, ids]})) == 2 * texts(server.complete(**TEXT))


def test_log_probabilities_are_those_of_the_model(server, base):
    """Those of prompt and text, whatever the temperature; with echo the prompt comes
    first."""
    model, tokenizer = npllm.load(base)
    answer = server.complete(**TEXT, echo=True, logprobs=2)["choices"][0]
    scores, ids = answer["logprobs"], tokenizer.encode(answer["text"])
    assert "".join(scores["tokens"]) == answer["text"]
    assert answer["text"].startswith("the cat")
    assert scores["text_offset"] == list(range(len(ids)))  # a token is a character here
    log_p = log_softmax(model.logits(np.array([ids[:-1]]))[0].astype(np.float64))
    expected = log_p[np.arange(len(ids) - 1), ids[1:]]
    assert scores["token_logprobs"][0] is scores["top_logprobs"][0] is None
    np.testing.assert_allclose(scores["token_logprobs"][1:], expected, rtol=1e-4)
    for row, top, token in zip(log_p, scores["top_logprobs"][1:], scores["tokens"][1:], strict=True):
        two = sorted(row)[-2:]
        assert max(top.values()) == pytest.approx(two[1], rel=1e-4)
        assert token in top
        assert 2 <= len(top) <= 3


def test_the_prompt_alone_can_be_scored(server):
    """What an evaluation asks for: nothing is written."""
    answer = server.complete(prompt="the cat", max_tokens=0, echo=True, logprobs=0)
    assert texts(answer) == ["the cat"]
    assert len(answer["choices"][0]["logprobs"]["token_logprobs"]) == 7
    assert answer["usage"]["completion_tokens"] == 0


def test_a_text_ends_before_a_stop_text(server):
    whole = texts(server.complete(**TEXT))[0]
    stop = whole[5:7]
    answer = server.complete(**TEXT, stop=["never there", stop], logprobs=1)["choices"][0]
    assert answer["text"] == whole[: whole.index(stop)]
    assert answer["finish_reason"] == "stop"
    assert "".join(answer["logprobs"]["tokens"]) == answer["text"]


def test_the_longest_prompt_leaves_room_for_one_token(server):
    assert server.complete(prompt="a" * 64, max_tokens=1)["usage"]["total_tokens"] == 65
    assert server.complete(prompt="a" * 60)["usage"]["completion_tokens"] == 5
    error = server.refusal("/v1/completions", {"prompt": "a" * 65}, 400)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")
    error = server.refusal("/v1/completions", {"prompt": "a" * 60, "max_tokens": 6}, 400)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "max_tokens")


def test_an_empty_prompt_begins_a_document(server):
    assert server.complete(**TEXT | {"prompt": ""})["usage"]["prompt_tokens"] == 1


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [{"text": "x"}]}, "prompt"),
        ({"prompt": [1, 10**30]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": "é"}, "prompt"),  # not in the vocabulary of characters
        ({"prompt": "\ud800"}, "prompt"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"seed": -1}, "seed"),
        ({"n": 0}, "n"),
        ({"n": 1000}, "n"),
        ({"prompt": ["a"] * 20, "n": 2}, "n"),
        ({"logprobs": 21}, "logprobs"),
        ({"stop": [""]}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"best_of": 2}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"guided_json": {}}, "guided_json"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_refused_by_name(server, fields, param):
    assert server.refusal("/v1/completions", TEXT | fields, 400)["param"] == param


def test_a_field_without_effect_is_accepted(server):
    neutral = {
        "best_of": 1,
        "suffix": None,
        "presence_penalty": 0,
        "logit_bias": {},
        "user": "me",
        "model": "pretrained",
    }
    assert texts(server.complete(**TEXT, **neutral)) == texts(server.complete(**TEXT))


def test_another_model_is_not_found(server):
    error = server.refusal("/v1/completions", TEXT | {"model": "gpt-4"}, 404)
    assert error["code"] == "model_not_found"
    assert "ask for pretrained" in error["message"]


def test_the_model_is_listed_with_its_step(server):
    status, listed = server.ask("/v1/models")
    assert status == 200
    (model,) = listed["data"]
    assert (model["id"], model["object"], model["step"], model["chat"]) == ("pretrained", "model", 30, False)
    assert server.ask("/v1/models/pretrained")[1] == model
    assert server.ask("/v1/models/other")[0] == 404


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[1]", b'{"prompt": "a", "prompt": "b"}', b'{"n": NaN}', b"\xff", b"[" * 10**4]
)
def test_a_body_that_is_no_object_is_refused(server, body):
    server.refusal("/v1/completions", body, 400)


def test_a_base_model_says_that_it_does_not_chat(server):
    error = server.refusal("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}, 400)
    assert "has not learnt the form of conversations; use /v1/completions" in error["message"]
