"""The gradient of PPO's loss on a minibatch.

The policy loss is differentiated through the policy, the value loss through the critic.
"""

import numpy as np

from npllm.model import GPT, Trainable
from npllm.rlhf.losses import clipped_policy, clipped_value
from npllm.rlhf.ppo_settings import PPOSettings
from npllm.rlhf.rollout import Minibatch


def networks(model: Trainable) -> tuple[GPT, GPT | None]:
    """Return the policy, and the critic or None."""
    policy, *critic = model.parts().values()
    return policy, critic[0] if critic else None


def policy_and_value_gradient(
    model: Trainable, batch: Minibatch, settings: PPOSettings, n_tokens: int
) -> tuple[float, dict[str, float]]:
    """Add the gradient of PPO's loss on rows of a minibatch to the model's gradients.

    batch: (b, W), the whole minibatch or a part of it. n_tokens: the number of response
    tokens in the whole minibatch. Returns the loss and its figures, each a sum over the
    tokens of these rows, divided by n_tokens. So the results of the parts add up to the
    means over the minibatch.
    """
    policy, critic = networks(model)
    mask, (b, W) = batch.mask, batch.tokens.shape
    scale = policy.dtype.type(1.0 / settings.temperature)
    trace = policy.trace(batch.tokens)
    log_probability, entropy, cache = policy.log_probability_forward(trace.hidden * scale, batch.targets.reshape(-1))
    log_probability, entropy = (array.reshape(b, W)[mask].astype(np.float64) for array in (log_probability, entropy))
    old = batch.log_probability[mask]
    part = clipped_policy(log_probability, old, batch.advantages[mask], settings.clip, n_tokens)
    dlog_probability, dentropy = np.zeros((b, W), policy.dtype), None
    dlog_probability[mask] = part.dlog_probability
    if settings.entropy_coef:
        dentropy = np.where(mask, -settings.entropy_coef / n_tokens, 0.0).astype(policy.dtype).reshape(-1)
    dhidden = policy.log_probability_backward(dlog_probability.reshape(-1), dentropy, cache)
    policy.backward(trace, dhidden * scale)

    log_ratio = log_probability - old
    loss = part.loss - settings.entropy_coef * float(entropy.sum()) / n_tokens
    figures = {
        "policy/loss": part.loss,
        "policy/approx_kl": float((part.ratio - 1.0 - log_ratio).sum()) / n_tokens,  # k3
        "policy/clip_frac": float(np.count_nonzero(part.clipped)) / n_tokens,
        "policy/ratio_mean": float(part.ratio.sum()) / n_tokens,
        "policy/ratio_var": float(((part.ratio - 1.0) ** 2).sum()) / n_tokens,
        "policy/entropy": float(entropy.sum()) / n_tokens,
    }
    if critic is not None:
        of_value = value_gradient(critic, batch, settings, n_tokens)
        loss += settings.value_coef * of_value["value/loss"]
        figures |= of_value
    return loss, figures


def value_gradient(critic: GPT, batch: Minibatch, settings: PPOSettings, n_tokens: int) -> dict[str, float]:
    """Add the gradient of value_coef times the value loss to the critic's gradients.

    Returns the figures of the value loss, which is not multiplied by value_coef there.
    """
    trace = critic.trace(batch.tokens)
    values = critic.readout(trace.hidden)[:, 0].reshape(batch.mask.shape)[batch.mask].astype(np.float64)
    old, returns = batch.values[batch.mask], batch.returns[batch.mask]
    part = clipped_value(values, old, returns, settings.value_clip, n_tokens)
    dvalues = np.zeros(batch.mask.shape, critic.dtype)
    dvalues[batch.mask] = settings.value_coef * part.dvalue
    critic.backward(trace, critic.readout_backward(dvalues.reshape(-1, 1), trace.hidden))
    return {"value/loss": part.loss, "value/clip_frac": float(np.count_nonzero(part.clipped)) / n_tokens}
