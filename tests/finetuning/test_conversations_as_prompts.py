"""A model that was trained on conversations, in PPO, `reward` and `dpo`.

Its prompts have the form of the conversations, and its responses end as their turns do.
"""

import numpy as np
import pytest
from small_runs import refused, run
from stage_runs import DEMONSTRATIONS, PREFERENCES, conversations, pretrained, stage_arguments, write_jsonl

from npllm.rlhf import ppo
from npllm.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("quick")

TALK = [{"role": "system", "content": "on a mat"}, {"role": "user", "content": "the cat"}]
AS_IDS = "<|system|>on a mat<|end|><|user|>the cat<|end|><|assistant|>"
SMALL_PPO = {"ppo__rollout_size": 4, "ppo__max_tokens": 4, "train__steps": 2}
SPACIOUS = {"model__block_size": 64}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of npllm sft on conversations, and records for later stages.

    One prompt of the records is a conversation, the other is a text.
    """
    folder = tmp_path_factory.mktemp("talks")
    write_jsonl(folder / "talks.jsonl", conversations(DEMONSTRATIONS))
    write_jsonl(folder / "preferences.jsonl", [PREFERENCES[0] | {"prompt": TALK}, *PREFERENCES[1:]])
    write_jsonl(folder / "prompts.jsonl", [{"prompt": TALK}])
    pretrained(folder, **SPACIOUS)
    for verb, base, records in (("sft", "pretrained", "talks"), ("reward", "sft", "preferences")):
        words = stage_arguments(verb, folder / base, folder / verb, data=folder / f"{records}.jsonl")
        assert run(*words) == 0
    return folder


def test_a_rollout_asks_and_stops_as_the_model_learnt_to(folder, tmp_path, monkeypatch):
    asked = []

    def watched(policy, prompts, *, stop_id, **how):
        asked.append((prompts, stop_id))
        return generate_batch(policy, prompts, stop_id=stop_id, **how)

    generate_batch = ppo.generate_batch
    monkeypatch.setattr(ppo, "generate_batch", watched)
    files = {"reward": folder / "reward", "prompts": folder / "prompts.jsonl"}
    assert run(*stage_arguments("ppo", folder / "sft", tmp_path / "ppo", **files, **SMALL_PPO)) == 0
    tokenizer = Tokenizer.load(folder / "sft")
    (prompts, stop_id), *_ = asked
    assert prompts == [tokenizer.encode(AS_IDS, allowed_special=True)] * 4
    assert stop_id == tokenizer.special_tokens["<|end|>"]


@pytest.mark.parametrize("verb", ["reward", "dpo"])
def test_pairs_are_turns_of_a_conversation(folder, tmp_path, monkeypatch, verb):
    """Pairs become turns, whether their prompt is a conversation or a text."""
    from npllm.rlhf import dpo, reward

    module, seen = {"reward": reward, "dpo": dpo}[verb], []
    encode = reward.encode_pairs

    def watched(*arguments):
        seen.append(encode(*arguments))
        return seen[-1]

    monkeypatch.setattr(module, "encode_pairs", watched)
    words = stage_arguments(verb, folder / "sft", tmp_path / "out", data=folder / "preferences.jsonl")
    assert run(*words) == 0
    tokenizer = Tokenizer.load(folder / "sft")
    rows = [row for pairs in seen for row in pairs.chosen.tokens]
    texts = {
        tokenizer.decode(row[: 1 + np.flatnonzero(row == tokenizer.special_tokens["<|end|>"])[-1]]) for row in rows
    }
    assert f"{AS_IDS}on a mat<|end|>" in texts
    assert "<|user|>the cat sat <|end|><|assistant|>under the roof<|end|>" in texts
    assert len(texts) == len(PREFERENCES)


def test_a_model_that_knows_no_conversations_is_refused_one(folder, tmp_path, capsys):
    words = stage_arguments("reward", folder / "pretrained", tmp_path / "out", data=folder / "preferences.jsonl")
    message = refused(capsys, *words, exit_code=2)
    assert "no special token <|end|>; start from a run of npllm sft from messages" in message
    assert not (tmp_path / "out").exists()
