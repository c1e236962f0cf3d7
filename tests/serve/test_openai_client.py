"""OpenAI's own client, and the README's commands, against a real server process."""

import os
import re
import shlex
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from serve.serving import serving
from small_runs import ENVIRONMENT, NPLLM, PATIENCE, refused, run
from stage_runs import PREFERENCES, stage_arguments, write_jsonl

openai = pytest.importorskip("openai", reason="openai is not installed (pip install 'npllm[test]')")

README = Path(__file__).resolve().parents[2] / "npllm/serve/README.md"
KEY = "correct-horse-battery"
QUESTION = [{"role": "user", "content": "the cat"}]


@contextmanager
def process(*words, **variables):
    """`npllm serve WORDS`; the process, and its address."""
    started = subprocess.Popen(
        [*NPLLM, "serve", *map(str, words), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT | {"PYTHONUNBUFFERED": "1"} | variables,
    )
    try:
        line = started.stdout.readline()
        found = re.match(r"(http://[\d.]+:\d+)/ serves ", line)
        assert found, line + started.stderr.read()
        yield started, found[1]
    finally:
        started.kill()
        started.communicate()


@pytest.fixture(scope="module")
def client(talker):
    """A client with the right key of a server process."""
    with process(talker, NPLLM_API_KEY=KEY) as (_, address):
        yield openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0, timeout=PATIENCE)


def test_completions(client):
    (model,) = client.models.list().data
    assert model.id == "talker"
    text = client.completions.create(model=model.id, prompt="the cat", max_tokens=8, seed=1, logprobs=2, n=2)
    assert [choice.index for choice in text.choices] == [0, 1]
    assert len(text.choices[0].logprobs.top_logprobs[0]) >= 2
    assert text.usage.total_tokens == text.usage.prompt_tokens + text.usage.completion_tokens
    stream = client.completions.create(model=model.id, prompt="the cat", max_tokens=8, seed=1, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == text.choices[0].text


def test_conversations(client):
    how = {"model": "talker", "messages": QUESTION, "max_completion_tokens": 8, "seed": 3, "temperature": 2}
    answer = client.chat.completions.create(**how, logprobs=True, top_logprobs=2, extra_body={"top_k": 15})
    assert answer.choices[0].message.role == "assistant"
    assert len(answer.choices[0].logprobs.content[0].top_logprobs) == 2
    stream = client.chat.completions.create(
        **how, stream=True, stream_options={"include_usage": True}, extra_body={"top_k": 15}
    )
    *chunks, last = list(stream)
    assert "".join(chunk.choices[0].delta.content for chunk in chunks) == answer.choices[0].message.content
    assert last.usage == answer.usage


def test_errors(client):
    with pytest.raises(openai.AuthenticationError, match="missing or wrong"):
        client.with_options(api_key="k" * 16).models.list()
    with pytest.raises(openai.NotFoundError) as found:
        client.completions.create(model="gpt-4", prompt="the cat")
    assert (found.value.code, found.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as found:
        client.completions.create(model="talker", prompt="a" * 70)
    assert found.value.code == "context_length_exceeded"
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    with pytest.raises(openai.BadRequestError, match="tools is not supported"):
        client.chat.completions.create(model="talker", messages=QUESTION, tools=[tool])


def test_the_readme_is_true(base):
    """Its curl commands and its Python run against a server."""
    text = README.read_text(encoding="utf-8")
    (commands,), (code,) = (re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL) for kind in ("curl", "python"))
    with serving(base) as server:
        for command in [*commands.splitlines(), f"{sys.executable} -c {shlex.quote(code)}"]:
            words = [word.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}") for word in shlex.split(command)]
            ended = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE)
            assert ended.returncode == 0, ended.stderr
    assert [line.split()[2] for line in server.log] == ["200"] * 5


def test_ctrl_c_ends_the_server_with_130(base):
    with process(base) as (started, address):
        assert started.stdout.readline().startswith(f"curl {address}/v1/completions ")
        os.kill(started.pid, signal.SIGINT)
        _, errors = started.communicate(timeout=PATIENCE)
    assert (started.returncode, errors) == (130, "npllm: interrupted\n")


def test_what_cannot_be_served_is_one_sentence(base, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("NPLLM_API_KEY", raising=False)
    with serving(base) as server:
        message = refused(capsys, "serve", base, "--port", server.port, exit_code=2)
    assert f"Port {server.port} of 127.0.0.1 cannot be used" in message
    assert "set it from 0" in refused(capsys, "serve", base, "--port", 70000, exit_code=2)
    assert "is not a folder" in refused(capsys, "serve", tmp_path / "none", exit_code=3)
    assert "it needs a key" in refused(capsys, "serve", base, "--host", "0.0.0.0", exit_code=2)
    (tmp_path / "key").write_text("short\n")
    assert "choose another" in refused(capsys, "serve", base, "--api_key_file", tmp_path / "key", exit_code=2)
    monkeypatch.setenv("NPLLM_API_KEY", "two words of a key")
    assert "The key in NPLLM_API_KEY is not" in refused(capsys, "serve", base, exit_code=2)


def test_a_reward_model_is_not_served(talker, tmp_path, capsys):
    data = write_jsonl(tmp_path / "preferences.jsonl", PREFERENCES)
    assert run(*stage_arguments("reward", talker, tmp_path / "reward", data=data)) == 0
    assert "is a reward model, which only judges texts" in refused(capsys, "serve", tmp_path / "reward", exit_code=2)
