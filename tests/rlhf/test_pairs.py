"""Preferences: how gold makes them, how they are encoded, and evaluation on them."""

import numpy as np
import pytest
from rlhf_cases import TOKENIZER, language_model, random_sequences, tiny_config
from small_runs import shown_on_a_terminal

from npllm.data.records import Preference
from npllm.errors import DataError
from npllm.optim import BatchConfig
from npllm.rlhf.dpo import DPOConfig, DPOGradients, dpo_loss, reference_log_probability
from npllm.rlhf.losses import sigmoid
from npllm.rlhf.preferences import preference_pairs, sample_preferences
from npllm.rlhf.responses import Response
from npllm.rlhf.reward import Pairs, encode_pairs, evaluate_reward
from npllm.rlhf.sequences import rewards_of, sequence_log_probability


class Length:
    """Gold is the length of a text."""

    name = "length"

    def prompts(self):
        return ["a", "b", "c", "de"]

    def gold(self, response):
        return float(len(response.text))


class Indifferent(Length):
    def gold(self, response):
        return 0.5


def test_the_better_half_is_preferred_to_the_worse():
    """Responses that were cut off are left out, and so are pairs with equal gold."""
    texts = ("aaa", "a", "aaaa", "aaaaa", "aa")
    responses = [Response("p", text, stopped=text != "aa") for text in texts]
    assert preference_pairs(Length(), responses) == [Preference("p", "aaaa", "a"), Preference("p", "aaaaa", "aaa")]
    responses = [Response("p", text, stopped=True) for text in ("a", "aa", "bb", "cc")]
    assert preference_pairs(Length(), responses) == [Preference("p", "bb", "a")]
    assert preference_pairs(Length(), [Response("p", "b", True), Response("p", "a", True)]) == []
    assert preference_pairs(Length(), responses[:1]) == []


def sampled(task, **changes) -> list[Preference]:
    model = language_model(tiny_config(), 3, dtype="float32")
    options = {"responses_per_prompt": 16, "max_tokens": 6, "temperature": 1.0, "n_pairs": 1000, "seed": 0}
    return sample_preferences(model, TOKENIZER, task, **options | changes)


def test_sampled_preferences_are_golds():
    pairs = sampled(Length())
    assert len(pairs) > 5
    assert all(len(pair.chosen) > len(pair.rejected) for pair in pairs)
    assert {pair.prompt for pair in pairs} <= set(Length().prompts())
    assert sampled(Length(), n_pairs=2) == pairs[:2]
    assert sampled(Length(), seed=1) != pairs
    with pytest.raises(DataError, match="of the task length told no two finished responses apart"):
        sampled(Indifferent())


def test_pairs_as_tokens():
    """The targets are the response and the stop token.

    An empty prompt is encoded as the stop token.
    """
    stop = TOKENIZER.eot_id
    pairs = encode_pairs([Preference("ab", "c", "dd"), Preference("", "e", "")], TOKENIZER, 16)
    assert [side.tokens.shape for side in pairs] == [(2, 8)] * 2
    assert pairs.chosen.tokens[0, :4].tolist() == [0, 1, 2, stop]
    assert pairs.chosen.targets[0].tolist() == [-1, 2, stop, -1, -1, -1, -1, -1]
    assert pairs.rejected.tokens[0, :5].tolist() == [0, 1, 3, 3, stop]
    assert pairs.rejected.tokens[1, :2].tolist() == [stop, stop]
    assert [side.last.tolist() for side in pairs] == [[3, 2], [4, 1]]


def test_evaluation_on_held_out_pairs():
    config = tiny_config(n_outputs=1)
    model = language_model(config)
    pairs = Pairs(random_sequences(config, 70, 1), random_sequences(config, 70, 2))  # more than go into one pass
    result = evaluate_reward(model, pairs)
    difference = rewards_of(model, pairs.chosen) - rewards_of(model, pairs.rejected)
    assert result.loss == pytest.approx(-np.log(sigmoid(difference)).mean())
    assert (result.accuracy, result.margin) == pytest.approx(((difference > 0).mean(), difference.mean()))
    assert sum(found["pairs"] for found in result.by_confidence) == 70
    for found in result.by_confidence:
        low = {0.6: 0.0, 0.7: 0.6, 0.8: 0.7, 0.9: 0.8, 1.0: 0.9}[found["up_to"]]
        confidence = sigmoid(np.abs(difference))
        inside = (confidence > low) & (confidence <= found["up_to"])
        assert (found["pairs"], found["accuracy"]) == (inside.sum(), (difference[inside] > 0).mean())
    shown = shown_on_a_terminal(lambda console: evaluate_reward(model, pairs, console))
    assert "evaluating" in shown
    assert "100%" in shown


def test_the_loss_of_dpo_on_held_out_pairs():
    """It follows from log-probabilities of whole responses; log 2 for the reference."""
    config = tiny_config()
    model, reference = language_model(config), language_model(config, 5)
    pairs = Pairs(random_sequences(config, 5, 1), random_sequences(config, 5, 2))
    of_reference = reference_log_probability(reference, pairs)
    assert dpo_loss(reference, pairs, of_reference, beta=0.3) == pytest.approx(np.log(2))
    chosen, rejected = (
        sum(sequence_log_probability(m, side).sum(axis=1) * sign for m, sign in ((model, 1), (reference, -1)))
        for side in pairs
    )
    expected = -np.log(sigmoid(0.3 * (chosen - rejected))).mean()
    assert dpo_loss(model, pairs, of_reference, beta=0.3) == pytest.approx(expected)


def test_dpo_is_right_where_it_prefers_the_chosen_more_than_the_reference_does():
    """That the chosen response is more probable than the rejected one is not enough.

    It says little about what the policy has learnt.
    """
    config, P = tiny_config(), 20
    model, reference = language_model(config), language_model(config, 5)
    pairs = Pairs(random_sequences(config, P, 1), random_sequences(config, P, 2))
    result = DPOGradients(pairs, reference, DPOConfig(batch=BatchConfig(size=P, micro_size=6)))(model, np.arange(P), 0)
    ours, theirs = (np.subtract(*reference_log_probability(m, pairs)) for m in (model, reference))
    assert result.figures == {"accuracy": (ours > theirs).mean()}
    assert (ours > theirs).mean() != (ours > 0).mean()
