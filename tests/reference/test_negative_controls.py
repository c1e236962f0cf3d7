"""Planted mistakes: the checks must refuse each of these wrong operations.

A check that has never refused anything proves nothing. Transformers with such mistakes
have been published, and their loss fell all the same. The name of each function says
what is wrong with it; it differs from the right operation in nothing else.
"""

from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import op_checks
import pytest

from npllm import reference
from npllm.reference.attention import causal_scores, merge_heads, softmax, split_heads
from npllm.reference.dropout import dropout_scale


def planted(**wrong):
    """The operations of the reference, with some of them replaced."""
    return SimpleNamespace(**{**vars(reference), **wrong})


# Attention: the backward for full heads (K = H, G = 1) in parts. Each mistake combines
# them in a wrong way.


class AttentionParts(NamedTuple):
    q: np.ndarray  # (B, H, 1, T, D)
    k: np.ndarray  # (B, H, 1, T, D)
    dy: np.ndarray  # (B, H, 1, T, D)
    P: np.ndarray  # softmax, (B, H, 1, T, T)
    A: np.ndarray  # after dropout
    dP: np.ndarray
    scale: float

    @property
    def dS(self):
        return self.P * (self.dP - (self.P * self.dP).sum(axis=-1, keepdims=True))


def attention_parts(dy, cache, n_head, rate, key):
    q, k, v = split_heads(cache.qkv, n_head, n_head)
    B, H, _, T, D = q.shape
    dy = dy.reshape(B, T, H, 1, D).transpose(0, 2, 3, 1, 4)
    P = cache.probabilities
    factor = dropout_scale(P.shape, rate, key, dy.dtype)
    return AttentionParts(q, k, dy, P, P * factor, dy @ transposed(v) * factor, 1 / np.sqrt(D))


def transposed(matrices):
    return matrices.swapaxes(-1, -2)


def pack(dq, dk, dv):
    return np.concatenate([merge_heads(dq), merge_heads(dk), merge_heads(dv)], axis=-1)


def attention_put_together_rightly(dy, cache, n_head, n_kv_head, *, rate, key):
    p = attention_parts(dy, cache, n_head, rate, key)
    return pack(p.dS @ p.k * p.scale, transposed(p.dS) @ p.q * p.scale, transposed(p.A) @ p.dy)


def attention_with_dk_not_transposed(dy, cache, n_head, n_kv_head, *, rate, key):
    p = attention_parts(dy, cache, n_head, rate, key)
    return pack(p.dS @ p.k * p.scale, p.dS @ p.q * p.scale, transposed(p.A) @ p.dy)


def attention_with_dv_from_weights_before_dropout(dy, cache, n_head, n_kv_head, *, rate, key):
    p = attention_parts(dy, cache, n_head, rate, key)
    return pack(p.dS @ p.k * p.scale, transposed(p.dS) @ p.q * p.scale, transposed(p.P) @ p.dy)


def attention_without_the_scale(dy, cache, n_head, n_kv_head, *, rate, key):
    p = attention_parts(dy, cache, n_head, rate, key)
    return pack(p.dS @ p.k, transposed(p.dS) @ p.q, transposed(p.A) @ p.dy)


def attention_without_the_row_sum_of_the_softmax(dy, cache, n_head, n_kv_head, *, rate, key):
    p = attention_parts(dy, cache, n_head, rate, key)
    dS = p.P * p.dP
    return pack(dS @ p.k * p.scale, transposed(dS) @ p.q * p.scale, transposed(p.A) @ p.dy)


def attention_with_the_softmax_of_the_dropped_weights(dy, cache, n_head, n_kv_head, *, rate, key):
    p = attention_parts(dy, cache, n_head, rate, key)
    dS = p.A * (p.dP - (p.A * p.dP).sum(axis=-1, keepdims=True))
    return pack(dS @ p.k * p.scale, transposed(dS) @ p.q * p.scale, transposed(p.A) @ p.dy)


def attention_with_one_query_of_each_group(dy, cache, n_head, n_kv_head, *, rate, key):
    """dk and dv come from the first query head, not from the sum over the group."""
    gradient = reference.attention_backward(dy, cache, n_head, n_kv_head, rate=rate, key=key)
    D = dy.shape[-1] // n_head
    only_first = dy.reshape(*dy.shape[:2], n_kv_head, n_head // n_kv_head, D).copy()
    only_first[:, :, :, 1:] = 0
    part = reference.attention_backward(only_first.reshape(dy.shape), cache, n_head, n_kv_head, rate=rate, key=key)
    return np.concatenate([gradient[..., : n_head * D], part[..., n_head * D :]], axis=-1)


def attention_backward_that_ignores_starts(dy, cache, n_head, n_kv_head, *, rate=0.0, key=None):
    q, k, _ = split_heads(cache.qkv, n_head, n_kv_head)
    uncut = cache._replace(probabilities=softmax(causal_scores(q, k, 0, None)))
    return reference.attention_backward(dy, uncut, n_head, n_kv_head, rate=rate, key=key)


def attention_forward_that_ignores_starts(qkv, n_head, n_kv_head, *, starts=None):
    """No gradient check can see this: the backward is that of this forward."""
    return reference.attention_forward(qkv, n_head, n_kv_head)


# The other operations.


def linear_with_bias_gradient_over_the_wrong_axis(dy, x, weight, dweight, dbias=None, *, pre_activation=None):
    dbias += dy.sum(axis=1)
    return reference.linear_backward(dy, x, weight, dweight)


def linear_with_gelu_of_the_output(dy, x, weight, dweight, dbias=None, *, pre_activation):
    """gelu' is taken at y, not at z.

    That is right for activations whose derivative is a function of y, such as ReLU.
    """
    y = reference.gelu_forward(pre_activation)
    return reference.linear_backward(dy, x, weight, dweight, dbias, pre_activation=y)


def linear_that_overwrites_the_gradient(dy, x, weight, dweight, dbias=None, *, pre_activation=None):
    dweight[...] = 0
    return reference.linear_backward(dy, x, weight, dweight, dbias)


def gelu_without_the_inner_derivative_of_the_cube(dy, x):
    """du/dx = s (1 + a x^2) instead of s (1 + 3 a x^2)."""
    tanh_u = np.tanh(0.7978845608028654 * (x + 0.044715 * x**3))
    return dy * (0.5 * (1 + tanh_u) + 0.5 * x * (1 - tanh_u**2) * 0.7978845608028654 * (1 + 0.044715 * x**2))


def relu2_with_the_slope_of_the_square_everywhere(dy, x):
    return dy * 2 * x


def layernorm_without_the_mean_of_the_gradient(dy, cache, weight, dweight, dbias=None):
    right = reference.layernorm_backward(dy, cache, weight, dweight, dbias)
    return right + cache.rstd[:, None] * (dy * weight).mean(axis=1, keepdims=True)


def layernorm_without_the_variance_term(dy, cache, weight, dweight, dbias=None):
    reference.layernorm_backward(dy, cache, weight, dweight, dbias)
    g = dy * weight
    return cache.rstd[:, None] * (g - g.mean(axis=1, keepdims=True))


def layernorm_with_another_eps(dy, cache, weight, dweight, dbias=None):
    """eps is 1e-6 in the backward and 1e-5 in the forward: wrong in the fifth digit."""
    rstd = 1 / np.sqrt(1 / cache.rstd**2 - 1e-5 + 1e-6)
    return reference.layernorm_backward(dy, cache._replace(rstd=rstd), weight, dweight, dbias)


def add_norm_with_the_residual_through_the_norm(dtotal, dy, cache, weight, dweight, dbias=None, *, norm):
    return reference.layernorm_backward(dtotal + dy, cache, weight, dweight, dbias)


def add_norm_without_the_residual(dtotal, dy, cache, weight, dweight, dbias=None, *, norm):
    return reference.layernorm_backward(dy, cache, weight, dweight, dbias)


def embedding_that_loses_repeated_tokens(dy, cache, dtoken_embedding, dposition_embedding=None):
    dtoken_embedding[cache.tokens] += dy
    dposition_embedding[cache.first_position : cache.first_position + dy.shape[1]] += dy.sum(axis=0)


def embedding_with_positions_from_0(dy, cache, dtoken_embedding, dposition_embedding=None):
    reference.embedding_backward(dy, cache._replace(first_position=0), dtoken_embedding, dposition_embedding)


def embedding_with_positions_that_do_not_restart(dy, cache, dtoken_embedding, dposition_embedding=None):
    reference.embedding_backward(dy, cache._replace(positions=None), dtoken_embedding, dposition_embedding)


def rotary_turned_on_instead_of_back(dy, cos, sin, n_head, n_kv_head):
    return reference.rotary_forward(dy, cos, sin, n_head, n_kv_head)


def qk_norm_over_all_heads_of_a_row(dy, cache, q_weight, k_weight, dq_weight, dk_weight):
    rstd = np.broadcast_to((cache.rstd**-2).mean(axis=-1, keepdims=True) ** -0.5, cache.rstd.shape)
    return reference.qk_norm_backward(dy, cache._replace(rstd=rstd), q_weight, k_weight, dq_weight, dk_weight)


def qk_norm_with_the_gradients_of_the_weights_exchanged(dy, cache, q_weight, k_weight, dq_weight, dk_weight):
    return reference.qk_norm_backward(dy, cache, q_weight, k_weight, dk_weight, dq_weight)


def swiglu_without_the_gates_own_slope(dy, cache):
    """silu' = sigma instead of sigma (1 + g (1 - sigma)).

    The sigma of the gate is taken for a constant.
    """
    _, dup = reference.swiglu_backward(dy, cache)
    return dy * cache.up / (1 + np.exp(-cache.gate)), dup


def dropout_with_a_new_mask(dy, rate, key):
    return reference.dropout_forward(dy, rate, key._replace(step=key.step + 1))


def dropout_without_the_factor(dy, rate, key):
    return reference.dropout_forward(dy, rate, key) * (1 - rate)


def loss_that_counts_ignored_targets(x, weight, targets, n_targets, dweight):
    return reference.lm_head_loss_and_grad(x, weight, targets, len(targets), dweight)


def loss_whose_gradient_counts_the_targets_of_its_own_part(x, weight, targets, n_targets, dweight):
    loss, _ = reference.lm_head_loss_and_grad(x, weight, targets, n_targets, np.zeros_like(dweight))
    own = np.count_nonzero(targets >= 0)
    return loss, reference.lm_head_loss_and_grad(x, weight, targets, own, dweight)[1]


def loss_backward_without_row_weights(dnll, cache, weight, dweight):
    return reference.lm_head_loss_backward(np.ones_like(dnll), cache, weight, dweight)


def loss_backward_that_learns_ignored_targets(dnll, cache, weight, dweight):
    """-1 is used as an index, which means the last token."""
    targets = cache.targets % len(weight)
    return reference.lm_head_loss_backward(dnll, cache._replace(targets=targets), weight, dweight)


def policy_whose_entropy_gradient_forgets_the_mean_surprise(dlog_probability, dentropy, cache, weight, dweight):
    wrong = cache._replace(entropy=np.zeros_like(cache.entropy))
    return reference.lm_head_policy_backward(dlog_probability, dentropy, wrong, weight, dweight)


def policy_that_is_rewarded_for_ignored_targets(dlog_probability, dentropy, cache, weight, dweight):
    wrong = cache._replace(targets=cache.targets % len(weight))
    return reference.lm_head_policy_backward(dlog_probability, dentropy, wrong, weight, dweight)


def policy_with_the_sign_of_the_loss(dlog_probability, dentropy, cache, weight, dweight):
    return reference.lm_head_policy_backward(-dlog_probability, dentropy, cache, weight, dweight)


def adam_with_the_step_counted_from_0(params, grads, m, v, *, step, **options):
    """The step is one too small from the second update on.

    Step 0 would divide by zero at the first update, so the first one is counted as 1.
    """
    reference.adam_update(params, grads, m, v, step=max(step - 1, 1), **options)


def adam_with_the_step_counted_ahead(params, grads, m, v, *, step, **options):
    reference.adam_update(params, grads, m, v, step=step + 1, **options)


def full_heads(ops):
    op_checks.check_attention(ops, B=2, T=5, K=2, G=1, D=3, seed=0, rate=0.3)


def grouped_heads(ops):
    op_checks.check_attention(ops, B=2, T=5, K=2, G=2, D=3, seed=0, rate=0.3)


def attention_cut_at_starts(ops):
    op_checks.check_attention(ops, B=2, T=9, K=2, G=2, D=3, seed=0, rate=0.3, packed=True)


def packed_documents(ops):
    op_checks.check_packed_attention(ops, lengths=[3, 1, 4], K=2, G=2, D=3, seed=0)


def square_linear(ops):
    op_checks.check_linear(ops, N=4, n_in=3, n_out=4, seed=0)  # N = n_out, so dy.sum(axis=1) has the bias's shape


def linear_gelu(ops):
    op_checks.check_linear(ops, N=4, n_in=3, n_out=5, seed=0, epilogue="gelu")


def gelu(ops):
    op_checks.check_gelu(ops, N=4, F=5, seed=0)


def relu2(ops):
    op_checks.check_relu2(ops, N=4, F=5, seed=0)


def layernorm(ops):
    op_checks.check_layernorm(ops, N=4, C=6, seed=0)


def add_norm(ops):
    op_checks.check_add_norm(ops, N=4, C=6, seed=0)


def embedding(ops):
    op_checks.check_embedding(ops, B=2, T=4, C=3, V=3, seed=0, n_positions=6, first_position=1)


def embedding_of_packed_documents(ops):
    op_checks.check_embedding(ops, B=2, T=4, C=3, V=3, seed=0, n_positions=6, restarting=True)


def rotary(ops):
    op_checks.check_rotary(ops, B=1, T=4, K=1, G=2, D=4, seed=0)


def qk_norm(ops):
    op_checks.check_qk_norm(ops, B=2, T=3, K=1, G=2, D=4, seed=0)


def swiglu(ops):
    op_checks.check_swiglu(ops, N=4, F=5, seed=0)


def dropout(ops):
    op_checks.check_dropout(ops, (6, 7), 0.3, seed=0)


def loss(ops):
    op_checks.check_lm_head_loss(ops, N=6, C=3, V=5, seed=1)


def loss_and_grad(ops):
    op_checks.check_lm_head_loss_and_grad(ops, N=6, C=3, V=5, n_targets=9, seed=1)


def policy(ops):
    op_checks.check_lm_head_policy(ops, N=6, C=3, V=5, seed=1)


def two_adam_steps(ops):
    op_checks.check_two_adam_steps(ops)


# (the check, the operation that is replaced, the wrong one, a part of the error
# message: usually the array that must be blamed)
CONTROLS = [
    (full_heads, "attention_backward", attention_with_dk_not_transposed, "'k'"),
    (full_heads, "attention_backward", attention_with_dv_from_weights_before_dropout, "'v'"),
    (full_heads, "attention_backward", attention_without_the_scale, "'q'"),
    (full_heads, "attention_backward", attention_without_the_row_sum_of_the_softmax, "'q'"),
    (full_heads, "attention_backward", attention_with_the_softmax_of_the_dropped_weights, "'q'"),
    (grouped_heads, "attention_backward", attention_with_one_query_of_each_group, "'k'"),
    (attention_cut_at_starts, "attention_backward", attention_backward_that_ignores_starts, "'q'"),
    (packed_documents, "attention_backward", attention_backward_that_ignores_starts, "leakage into dqkv"),
    (packed_documents, "attention_forward", attention_forward_that_ignores_starts, "leakage"),
    (square_linear, "linear_backward", linear_with_bias_gradient_over_the_wrong_axis, "'bias'"),
    (square_linear, "linear_backward", linear_that_overwrites_the_gradient, "'weight'"),
    (linear_gelu, "linear_backward", linear_with_gelu_of_the_output, "'x'"),
    (gelu, "gelu_backward", gelu_without_the_inner_derivative_of_the_cube, "'x'"),
    (relu2, "relu2_backward", relu2_with_the_slope_of_the_square_everywhere, "'x'"),
    (layernorm, "layernorm_backward", layernorm_without_the_mean_of_the_gradient, "'x'"),
    (layernorm, "layernorm_backward", layernorm_without_the_variance_term, "'x'"),
    (layernorm, "layernorm_backward", layernorm_with_another_eps, "'x'"),
    (add_norm, "add_norm_backward", add_norm_with_the_residual_through_the_norm, "'x'"),
    (add_norm, "add_norm_backward", add_norm_without_the_residual, "'x'"),
    (embedding, "embedding_backward", embedding_that_loses_repeated_tokens, "'token_embedding'"),
    (embedding, "embedding_backward", embedding_with_positions_from_0, "'position_embedding'"),
    (
        embedding_of_packed_documents,
        "embedding_backward",
        embedding_with_positions_that_do_not_restart,
        "'position_embedding'",
    ),
    (rotary, "rotary_backward", rotary_turned_on_instead_of_back, "'q'"),
    (qk_norm, "qk_norm_backward", qk_norm_over_all_heads_of_a_row, "'q'"),
    (qk_norm, "qk_norm_backward", qk_norm_with_the_gradients_of_the_weights_exchanged, "'q_weight'"),
    (swiglu, "swiglu_backward", swiglu_without_the_gates_own_slope, "'gate'"),
    (dropout, "dropout_backward", dropout_with_a_new_mask, "'x'"),
    (dropout, "dropout_backward", dropout_without_the_factor, "'x'"),
    (loss, "lm_head_loss_backward", loss_backward_without_row_weights, "'x'"),
    (loss, "lm_head_loss_backward", loss_backward_that_learns_ignored_targets, "'x'"),
    (loss_and_grad, "lm_head_loss_and_grad", loss_that_counts_ignored_targets, "not that of the forward"),
    (loss_and_grad, "lm_head_loss_and_grad", loss_whose_gradient_counts_the_targets_of_its_own_part, "'x'"),
    (policy, "lm_head_policy_backward", policy_whose_entropy_gradient_forgets_the_mean_surprise, "'x'"),
    (policy, "lm_head_policy_backward", policy_that_is_rewarded_for_ignored_targets, "'x'"),
    (policy, "lm_head_policy_backward", policy_with_the_sign_of_the_loss, "'x'"),
    (two_adam_steps, "adam_update", adam_with_the_step_counted_from_0, "Mismatched"),
    (two_adam_steps, "adam_update", adam_with_the_step_counted_ahead, "Mismatched"),
]


@pytest.mark.parametrize(("check", "name", "wrong", "blamed"), CONTROLS, ids=[row[2].__name__ for row in CONTROLS])
def test_the_mistake_is_caught(check, name, wrong, blamed):
    with pytest.raises(AssertionError, match=blamed):
        check(planted(**{name: wrong}))


@pytest.mark.parametrize("check", dict.fromkeys(row[0] for row in CONTROLS), ids=lambda check: check.__name__)
def test_the_same_check_accepts_the_right_operation(check):
    check(reference)


def test_the_parts_of_the_wrong_attentions_are_right():
    full_heads(planted(attention_backward=attention_put_together_rightly))
