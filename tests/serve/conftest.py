"""What the tests of the server share: a base model and one that chats."""

import pytest
from small_runs import run
from stage_runs import DEMONSTRATIONS, conversations, pretrained, stage_arguments, write_jsonl

for name in ("starlette", "uvicorn", "jinja2"):
    pytest.importorskip(name, reason=f"{name} is not installed (pip install 'npllm[serve]')")


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A run of npllm pretrain with a window of 64 characters; no test may change it.

    Its texts depend on their prompts.
    """
    return pretrained(tmp_path_factory.mktemp("base"), model__block_size=64, optim__lr=0.03, train__steps=30)


@pytest.fixture(scope="session")
def talker(base, tmp_path_factory):
    """A run of npllm sft on conversations; no test may change it."""
    folder = tmp_path_factory.mktemp("talker")
    data = write_jsonl(folder / "talks.jsonl", conversations(DEMONSTRATIONS))
    assert run(*stage_arguments("sft", base, folder / "talker", data=data)) == 0
    return folder / "talker"
