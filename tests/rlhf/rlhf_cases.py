"""Small policies, critics and reward models, and batches of responses for them.

Their weights are random and of order one.
"""

from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from model.model_cases import GPT_2, QWEN, set_weights_of_order_one, small_config

from npllm.model import GPT, ActorCritic, Model, ModelConfig, Parameters, Trainable
from npllm.model.parameters import weight_shapes
from npllm.rlhf.ppo import PPOGradients, Scorers
from npllm.rlhf.ppo_gradient import networks
from npllm.rlhf.ppo_settings import PPOSettings
from npllm.rlhf.rollout import Minibatch
from npllm.rlhf.sequences import Sequences, join
from npllm.tokenizer import train_char
from npllm.tokenizer.special_tokens import with_special_tokens
from npllm.tokenizer.tokenizer import END_OF_TEXT

ARCHITECTURES = {"gpt2": GPT_2 | {"tie_embeddings": True}, "qwen": QWEN}
STOP = 0
TOKENIZER = with_special_tokens(train_char(["abcdefghij"]), [END_OF_TEXT])  # 11 tokens, as in tiny_config


def tiny_config(**changes) -> ModelConfig:
    """Return a small config with an untied head, plus changes.

    With it every token is likely enough to be written, the stop token too.
    """
    return small_config(**{"n_layer": 1, "block_size": 16, "tie_embeddings": False} | changes)


def order_one(model: Model, seed: int) -> Model:
    """Set the model's weights to random values of order one; return the model.

    With LoRA the frozen weights are set as well. The factors then change the weights by
    about half of their size.
    """
    for number, part in enumerate(model.parts().values()):
        set_weights_of_order_one(part, seed + number)
        for name, array in part.params.items():
            if name.endswith("lora_b"):
                array *= 0.5 * part.config.lora_rank / part.config.lora_alpha
    if model.frozen is not None:
        set_weights_of_order_one(SimpleNamespace(params=model.frozen), seed + 7)
    return model


def language_model(config: ModelConfig, seed: int = 0, *, dtype: str = "float64", backend: str = "kernels") -> GPT:
    return order_one(GPT(config, dtype=dtype, backend=backend), seed)


def actor_critic(config: ModelConfig, seed: int = 0, *, dtype: str = "float64", backend: str = "kernels"):
    """Return a policy of this config with a critic: the same with a scalar head."""
    critic = ModelConfig(**vars(config) | {"n_outputs": 1})
    frozen = Parameters(weight_shapes(config), dtype) if config.lora_rank else None
    return order_one(ActorCritic(config, critic, dtype=dtype, backend=backend, frozen=frozen), seed)


def random_sequences(config: ModelConfig, B: int, seed: int = 0, *, width: int | None = None) -> Sequences:
    """Return B random prompts of 1 to 3 tokens with responses of 1 to 5 tokens."""
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(0, config.vocab_size, rng.integers(1, 4)).tolist() for _ in range(B)]
    responses = [rng.integers(0, config.vocab_size, rng.integers(1, 6)).astype(np.int32) for _ in range(B)]
    return join(prompts, responses, width or 8)


class Case(NamedTuple):
    """A minibatch, its settings, and the number of tokens that divides the loss."""

    batch: Minibatch
    settings: PPOSettings
    n_tokens: int


def minibatch_around(model: Trainable, B: int, seed: int, **settings) -> Case:
    """Return a minibatch with tokens on every side of every clip, and none on an edge.

    The ratios are 0.5, 0.9, 1.1 and 2 with a clip of 0.2, and the advantages have both
    signs. The values are inside and outside of their clip, with returns on both sides.
    """
    rng = np.random.default_rng(seed)
    own = {"value_coef": 0.7, "value_clip": 0.3, "entropy_coef": 0.3, "temperature": 0.8}  # two different clips
    settings = PPOSettings(**own | settings)
    policy, critic = networks(model)
    tokens, targets, _ = random_sequences(policy.config, B, seed)
    mask = targets >= 0
    log_probability, _ = token_figures(policy, tokens, targets, settings.temperature)
    old = np.where(mask, log_probability - np.log(rng.choice([0.5, 0.9, 1.1, 2.0], mask.shape)), 0.0)
    advantages = np.where(mask, rng.choice([-1.0, 1.0], mask.shape) * rng.uniform(0.5, 2.0, mask.shape), 0.0)
    values, returns = np.zeros(mask.shape), np.zeros(mask.shape)
    if critic is not None:
        now = token_values(critic, tokens)
        values = np.where(mask, now + rng.choice([-0.5, -0.1, 0.1, 0.5], mask.shape), 0.0)
        returns = np.where(mask, now + rng.choice([-2.0, -0.03, 0.03, 2.0], mask.shape), 0.0)
    return Case(Minibatch(tokens, targets, mask, old, values, advantages, returns), settings, 3 + int(mask.sum()))


def token_figures(policy: GPT, tokens, targets, temperature: float = 1.0):
    """Return the log-probability of each target and the entropy of its distribution.

    Both are (B, W), computed from the logits, and 0 where there is no target.
    """
    hidden = policy.trace(tokens).hidden
    logits = (hidden @ policy.merged()[policy.head_name].T).reshape(*tokens.shape, -1) / temperature
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    chosen = np.take_along_axis(log_p, np.maximum(targets, 0)[..., None], axis=-1)[..., 0]
    entropy = -(np.exp(log_p) * log_p).sum(axis=-1)
    return np.where(targets >= 0, chosen, 0.0), np.where(targets >= 0, entropy, 0.0)


def token_values(critic: GPT, tokens):
    """Return the output of the scalar head at every column, (B, W)."""
    hidden = critic.trace(tokens).hidden
    return (hidden @ critic.params["readout.weight"] + critic.params["readout.bias"])[:, 0].reshape(tokens.shape)


def ppo_loss(model: Trainable, case: Case) -> float:
    """Return the loss of PPO, from its equation for one token after another."""
    (tokens, targets, mask, old, old_values, advantages, returns), setting, n_tokens = case
    policy, critic = networks(model)
    log_probability, entropy = token_figures(policy, tokens, targets, setting.temperature)
    values = None if critic is None else token_values(critic, tokens)
    total = 0.0
    for place in zip(*np.nonzero(mask), strict=True):
        ratio, A = np.exp(log_probability[place] - old[place]), advantages[place]
        total -= min(A * ratio, A * min(max(ratio, 1 - setting.clip), 1 + setting.clip))
        total -= setting.entropy_coef * entropy[place]
        if values is not None:
            V, V_old, R, clip = values[place], old_values[place], returns[place], setting.value_clip
            limited = min(max(V, V_old - clip), V_old + clip)
            total += setting.value_coef * 0.5 * max((V - R) ** 2, (limited - R) ** 2)
    return total / n_tokens


def with_gradients(model: Trainable, compute, *arguments, **options) -> tuple[Any, dict[str, np.ndarray]]:
    """Return what compute(model, ...) returns, and copies of the gradients it adds."""
    model.grads.flat[:] = 0.0
    result = compute(model, *arguments, **options)
    return result, {name: array.copy() for name, array in model.grads.items()}


def assert_equal_gradients(found, expected, rtol=1e-12):
    """Compare gradients by name; the tolerance is relative to the norm of them all."""
    assert found.keys() == expected.keys()
    length = np.sqrt(sum(float((array**2).sum()) for array in expected.values()))
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=0, atol=rtol * length, err_msg=name)


def ppo_gradients(model: Trainable, *, minibatch: int | None = None, prompts=None, **settings) -> PPOGradients:
    """Return PPOGradients for a small model of float32 or float64.

    The reference is a copy of the model's present weights. The reward model is a random
    network.
    """
    policy, _ = networks(model)
    plain = ModelConfig(**vars(policy.config) | {"lora_rank": 0})
    reference = GPT(plain, dtype=policy.dtype_name)
    for name, array in policy.merged().items():
        reference.params[name][...] = array
    reward = language_model(ModelConfig(**vars(plain) | {"n_outputs": 1}), seed=11, dtype=policy.dtype_name)
    settings = PPOSettings(**{"rollout_size": 16, "group": 4, "max_tokens": 4} | settings)
    return PPOGradients(
        settings,
        prompts or [[1], [2, 3], [4, 5, 6]],
        Scorers(reference, reward),
        stop_id=STOP,
        minibatch=minibatch or settings.rollout_size,
        micro_size=8,
        seed=3,
        block_size=policy.config.block_size,
    )


def collected(model: Trainable, **settings) -> PPOGradients:
    """Return PPOGradients with a first rollout in the buffer."""
    gradients = ppo_gradients(model, **settings)
    gradients.collect(model)
    return gradients
