"""Verdicts on policies, against figures computed from the responses themselves.

The figures are gold, proxy, KL divergence and wins.
"""

import numpy as np
import pytest
from rlhf_cases import TOKENIZER, language_model, tiny_config
from small_runs import shown_on_a_terminal

from npllm.rlhf.divergence import exact_kl
from npllm.rlhf.judging import JUDGING_SEED, Judge, gold_of
from npllm.rlhf.responses import Response, respond
from npllm.rlhf.reward_curves import best_of_divergence, best_of_mean
from npllm.rlhf.sequences import join, rewards_of

N, MAX_TOKENS = 12, 5
PROMPTS = ["a", "bc", "d", "e", "fgh"]


class Letters:
    """A task whose gold reward differs between prompts, texts and ways to end.

    It counts the letters a to e, so some responses have equal gold.
    """

    name = "letters"

    def judged_prompts(self):
        return PROMPTS

    def gold(self, response):
        return PROMPTS.index(response.prompt) + sum(letter < "f" for letter in response.text) + 0.5 * response.stopped


def answers(policy, number: int):
    """Return N responses to the prompts in turn; each round number gives other ones."""
    asked = [PROMPTS[i % len(PROMPTS)] for i in range(N)]
    return respond(policy, TOKENIZER, asked, max_tokens=MAX_TOKENS, seed=JUDGING_SEED, first_id=number * N)


@pytest.fixture(scope="module")
def networks():
    """Return reference, policy and reward model."""
    config = tiny_config()
    return language_model(config, 3), language_model(config, 4), language_model(tiny_config(n_outputs=1), 11)


def new_judge(networks, console=None) -> Judge:
    reference, _, reward = networks
    settings = {"max_tokens": MAX_TOKENS, "missing_stop_score": -1.0, "n": N}
    return Judge(Letters(), TOKENIZER, reference, reward, console=console, **settings)


@pytest.fixture
def judge(networks):
    return new_judge(networks)


def test_a_policy_is_judged_by_what_it_writes(judge, networks):
    reference, policy, reward = networks
    first, verdict = judge.judge("sft", reference), judge.judge("ppo", policy)
    assert (first.kl, set(first.won)) == (0.0, {0.5})
    written = answers(policy, 0)
    sequences = join(written.prompts, written.tokens, 8)
    gold = np.array([Letters().gold(response) for response in written.responses])
    np.testing.assert_array_equal(verdict.gold, gold)
    np.testing.assert_allclose(verdict.proxy, rewards_of(reward, sequences), rtol=1e-12)
    won = [
        1.0 if ours > theirs else 0.5 if ours == theirs else 0.0 for ours, theirs in zip(gold, first.gold, strict=True)
    ]
    assert verdict.won.tolist() == won
    assert set(won) == {0.0, 0.5, 1.0}
    assert verdict.kl == pytest.approx(exact_kl(policy, reference, sequences), rel=1e-12)
    assert verdict.kl != pytest.approx(exact_kl(reference, policy, sequences), rel=1e-3)
    texts, stopped = [r.text for r in written.responses], [r.stopped for r in written.responses]
    assert 0 < sum(stopped) < N
    assert verdict.stop_rate == np.mean(stopped)
    assert verdict.length == np.mean([len(text) for text in texts])
    assert verdict.distinct_1 == len(set("".join(texts))) / len("".join(texts))


def proxies_of(reward, rounds) -> np.ndarray:
    return np.stack([rewards_of(reward, join(each.prompts, each.tokens, 8)) for each in rounds])


def test_the_best_of_n_is_what_ppo_rewards_most(judge, networks):
    """A response without a stop token counts as a score of -1."""
    reference, _, reward = networks
    rounds = [answers(reference, number) for number in range(4)]
    proxies = proxies_of(reward, rounds)
    golds = np.array([[Letters().gold(response) for response in each.responses] for each in rounds])
    stopped = np.array([[response.stopped for response in each.responses] for each in rounds])
    rewarded = np.where(stopped, (proxies - proxies.mean()) / proxies.std(), -1.0)
    winners = rewarded.argmax(axis=0)
    favourites = proxies.argmax(axis=0)
    assert len(set(winners)) == 4
    assert not stopped[favourites, np.arange(N)].all(), "the reward model likes no response best that has no end"
    verdict = judge.judge_best_of(4, reference)
    shown = shown_on_a_terminal(lambda console: new_judge(networks, console).judge_best_of(4, reference))
    assert "writing 4 responses" in shown
    assert "100%" in shown
    assert verdict.responses == [rounds[winner].responses[i] for i, winner in enumerate(winners)]
    np.testing.assert_array_equal(verdict.gold, golds[winners, np.arange(N)])
    np.testing.assert_allclose(verdict.proxy, proxies[winners, np.arange(N)], rtol=1e-12)
    assert verdict.kl == best_of_divergence(4)
    curve = [(best_of_divergence(n), best_of_mean(golds, rewarded, n)) for n in (1, 2, 4)]
    np.testing.assert_allclose(verdict.curve, curve, rtol=1e-12)
    assert verdict.curve[0][1] == pytest.approx(golds.mean())


def test_gold_of_tokens_is_that_of_their_prompt_and_text():
    """The metrics of a run compute gold from the text without the stop token."""
    gold = gold_of(Letters(), PROMPTS, TOKENIZER)
    tokens = [np.array([1, 7, TOKENIZER.eot_id]), np.array([0, 1, 2])]
    found = gold(np.array([2, 4]), tokens, np.array([True, False]))
    expected = [Letters().gold(Response(*of)) for of in (("d", "bh", True), ("fgh", "abc", False))]
    assert found.tolist() == expected == [3.5, 7.0]
