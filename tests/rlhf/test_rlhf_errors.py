"""Invalid inputs and settings are refused with a message that says what to do."""

import numpy as np
import pytest
from rlhf_cases import actor_critic, language_model, ppo_gradients, tiny_config

from npllm.data.prompt_format import PromptFormat
from npllm.data.records import Preference, read_preferences
from npllm.errors import ConfigError, DataError
from npllm.generation.batched import generate_batch
from npllm.optim import BatchConfig
from npllm.rlhf.dpo import DPOSettings
from npllm.rlhf.ppo_run import PPOConfig, with_sizes
from npllm.rlhf.ppo_settings import PPOSettings
from npllm.rlhf.reward import RewardSettings, encode_pairs
from npllm.rlhf.sequences import join
from npllm.runs.inputs import check_same_tokenizer
from npllm.tokenizer import byte_tokenizer, train_char
from npllm.tokenizer.special_tokens import with_special_tokens
from npllm.tokenizer.tokenizer import END_OF_TEXT


@pytest.mark.parametrize(
    ("prompts", "max_tokens", "message"),
    [
        ([[1], [2] * 13], 4, "Prompt 2 has 13 tokens; with 4 of a response it is longer than model.block_size = 16;"),
        ([[1], []], 4, "Prompt 2 has no tokens; leave it out."),
        ([], 4, "There is no prompt; give at least one."),
        ([[1]], 0, "max_tokens is 0; set it to at least 1."),
    ],
)
def test_prompts_that_cannot_be_answered(prompts, max_tokens, message):
    with pytest.raises((DataError, ConfigError)) as refused:
        generate_batch(language_model(tiny_config()), prompts, max_tokens=max_tokens, stop_id=0)
    assert str(refused.value).startswith(message)


def test_a_run_is_refused_before_its_first_rollout():
    model = actor_critic(tiny_config())
    with pytest.raises(DataError, match=r"Prompt 2 has 13 tokens; .*shorten it, or lower max_tokens"):
        ppo_gradients(model, prompts=[[1], [2] * 13])
    with pytest.raises(ConfigError, match=r"ppo\.rollout_size = 16 is no multiple of batch\.size = 5; .* to 20\."):
        ppo_gradients(model, minibatch=5)


def test_the_longest_prompt_that_fits():
    written = generate_batch(language_model(tiny_config()), [[2] * 12], max_tokens=4, stop_id=99)
    assert written.lengths.tolist() == [4]


@pytest.mark.parametrize(
    ("settings", "size", "expected"),
    [
        ({}, None, (32, 128, 4)),
        ({}, 7, (7, 28, 4)),
        ({"rollout_size": 48}, None, (24, 48, 4)),
        ({"rollout_size": 131}, None, (131, 131, 131)),  # a batch of 1 would be mostly noise
        ({"method": "rloo", "group": 5}, None, (32, 160, 5)),
        ({"method": "rloo", "group": 3}, 8, (8, 48, 3)),
        ({"method": "grpo", "rollout_size": 50}, None, (25, 50, 5)),
        ({"rollout_size": 6}, 4, (4, 6, 3)),  # both are the user's, and refused later
    ],
)
def test_sizes_that_are_not_set_fit_those_that_are(settings, size, expected):
    """Batch and group divide the rollout."""
    config = PPOConfig(ppo=PPOSettings(**settings), batch=BatchConfig(size=size, micro_size=32))
    sized = with_sizes(config)
    assert (sized.batch.size, sized.ppo.rollout_size, sized.ppo.group) == expected
    assert with_sizes(sized) == sized


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"method": "rloo", "group": 4, "rollout_size": 10},
            "ppo.group is 4; set it to a divisor of ppo.rollout_size, such as 5.",
        ),
        ({"method": "grpo", "group": 1}, "ppo.group is 1; set it to a divisor of ppo.rollout_size, such as 4."),
        ({"method": "trpo"}, "ppo.method is 'trpo'; choose one of ppo, rloo, grpo."),
        ({"rollout_size": 0}, "ppo.rollout_size is 0; set it to at least 1."),
        ({"max_tokens": 0}, "ppo.max_tokens is 0; set it to at least 1."),
        ({"epochs": 0}, "ppo.epochs is 0; set it to at least 1."),
        ({"kl_horizon": 0}, "ppo.kl_horizon is 0; set it to at least 1."),
        ({"temperature": 0.0}, "ppo.temperature is 0.0; set it above 0."),
        ({"temperature": float("nan")}, "ppo.temperature is nan; set it above 0."),
        ({"clip": 0.0}, "ppo.clip is 0.0; set it above 0."),
        ({"value_clip": -1.0}, "ppo.value_clip is -1.0; set it above 0."),
        ({"max_update_kl": 0.0}, "ppo.max_update_kl is 0.0; set it above 0."),
        ({"kl_coef": -0.1}, "ppo.kl_coef is -0.1; set it to at least 0."),
        ({"kl_target": -1.0}, "ppo.kl_target is -1.0; set it to at least 0."),
        ({"value_coef": -1.0}, "ppo.value_coef is -1.0; set it to at least 0."),
        ({"entropy_coef": float("nan")}, "ppo.entropy_coef is nan; set it to at least 0."),
        ({"gamma": 1.1}, "ppo.gamma is 1.1; set it from 0 to 1."),
        ({"lam": -0.1}, "ppo.lam is -0.1; set it from 0 to 1."),
    ],
)
def test_settings_of_ppo_out_of_range(settings, message):
    with pytest.raises(ConfigError) as refused:
        PPOSettings(**settings)
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (DPOSettings, {"beta": 0.0}, "dpo.beta is 0.0; set it above 0."),
        (DPOSettings, {"epochs": 0.0}, "dpo.epochs is 0.0; set it above 0."),
        (DPOSettings, {"val_fraction": 1.0}, "dpo.val_fraction is 1.0; set it between 0 and 1."),
        (RewardSettings, {"epochs": -1.0}, "reward.epochs is -1.0; set it above 0."),
        (RewardSettings, {"val_fraction": 0.0}, "reward.val_fraction is 0.0; set it between 0 and 1."),
    ],
)
def test_settings_of_dpo_and_reward_out_of_range(kind, settings, message):
    with pytest.raises(ConfigError) as refused:
        kind(**settings)
    assert str(refused.value) == message


def test_a_tokenizer_without_a_stop_token():
    with pytest.raises(ConfigError, match=r"no special token <\|endoftext\|>; start from a run of npllm sft\.$"):
        PromptFormat(without_stop := train_char(["abc"])).stop_id()
    with_stop = PromptFormat(with_special_tokens(without_stop, [END_OF_TEXT]))
    assert [with_stop.encode(text) for text in ("a", "")] == [[0], [with_stop.stop_id()]]


def test_different_tokenizers(tmp_path):
    for name, tokenizer in (("policy", byte_tokenizer()), ("same", byte_tokenizer()), ("other", train_char(["abc"]))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.toml").write_text("")
        tokenizer.save(tmp_path / name / "tokenizer.json")
    check_same_tokenizer(tmp_path / "policy", tmp_path / "same")
    with pytest.raises(DataError, match="have different tokenizers; train the reward model from the run whose policy"):
        check_same_tokenizer(tmp_path / "policy", tmp_path / "other")


def test_a_preference_between_equals(tmp_path):
    path = tmp_path / "preferences.jsonl"
    lines = [f'{{"prompt": "a", "chosen": "b", "rejected": "{rejected}"}}\n' for rejected in "cb"]
    path.write_text("".join(lines))
    with pytest.raises(DataError, match="line 2: chosen and rejected are equal"):
        read_preferences(path)


def test_pairs_that_do_not_fit():
    tokenizer = with_special_tokens(train_char(["abc"]), [END_OF_TEXT])
    short, long = Preference("a", "b", "c"), Preference("ab", "c", "a" * 6)
    assert encode_pairs([short], tokenizer, 8).rejected.last.tolist() == [2]
    with pytest.raises(DataError, match=r"Record 2 has 9 tokens, but there is room for 8; .*larger model\.block_size"):
        encode_pairs([short, long], tokenizer, 8)
    for prompt, response in (([], [1]), ([1], [])):
        with pytest.raises(DataError, match="Record 1 has an empty prompt or response; remove it"):
            join([prompt], [np.array(response, np.int32)], 8)
