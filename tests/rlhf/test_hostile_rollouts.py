"""An invalid rollout in a checkpoint is refused before the state changes."""

import numpy as np
import pytest
from rlhf_cases import STOP, actor_critic, collected, tiny_config

from npllm.rlhf.rollout import NUMBERS

CONFIG = tiny_config()


def number(name, value):
    def damage(ids, floats):
        floats[NUMBERS.index(name)] = value

    return damage


def token(place, value):
    def damage(ids, floats):
        ids[place] = value

    return damage


def no_response(ids, floats):
    ids[len(ids) // 2 :] = -1


DAMAGES = {
    "minibatches_used is out of range": [
        number("minibatches_used", value) for value in (-1, 0.5, 5, 1e18, np.nan, np.inf)
    ],
    "rollouts is out of range": [number("rollouts", value) for value in (-1, 1e18, np.nan)],
    "the scores have no deviation": [number("score_std", value) for value in (0.0, -1.0, np.nan)],
    "beta is negative": [number("kl_coef", -0.1), number("kl_coef", np.nan)],
    "a token is not in the vocabulary": [token(0, CONFIG.vocab_size), token(0, -1)],
    "a target is not in the vocabulary": [token(-1, CONFIG.vocab_size), token(-1, -2)],
    "a response is empty": [no_response],
}


@pytest.mark.parametrize(
    ("complaint", "damage"), [(complaint, damage) for complaint, damages in DAMAGES.items() for damage in damages]
)
def test_a_rollout_that_cannot_be(complaint, damage):
    gradients = collected(actor_critic(CONFIG, dtype="float32"), minibatch=16)
    arrays = {name: array.copy() for name, array in gradients.buffer.arrays().items()}
    gradients.check_rollout(arrays)  # it is valid before the damage
    assert STOP in arrays["rollout_tokens"]
    before = {name: array.copy() for name, array in gradients.buffer.arrays().items()}
    damage(arrays["rollout_tokens"], arrays["rollout_numbers"])
    with pytest.raises(ValueError, match=complaint):
        gradients.check_rollout(arrays)
    for name, array in gradients.buffer.arrays().items():
        np.testing.assert_array_equal(array, before[name])
