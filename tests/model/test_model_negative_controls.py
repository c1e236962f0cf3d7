"""Planted mistakes: a check that does not catch them proves nothing."""

import numpy as np
import pytest
from gradient_check import check_gradients
from model_cases import (
    check_split,
    gradients_of,
    patched,
    random_batch,
    set_weights_of_order_one,
    small_config,
    training_loss,
)

from npllm.model import GPT


def head_without_gradient(ops):
    def lm_head_loss_and_grad(x, weight, targets, n_targets, dweight, *, empty):
        return ops.lm_head_loss_and_grad(x, weight, targets, n_targets, np.zeros_like(dweight), empty=empty)

    return {"lm_head_loss_and_grad": lm_head_loss_and_grad}


def table_without_gradient(ops):
    def embedding_backward(dy, cache, dtoken_embedding, dposition_embedding, *, empty):
        ops.embedding_backward(dy, cache, np.zeros_like(dtoken_embedding), dposition_embedding, empty=empty)

    return {"embedding_backward": embedding_backward}


def positions_summed_over_time(ops):
    def embedding_backward(dy, cache, dtoken_embedding, dposition_embedding, *, empty):
        ops.embedding_backward(dy, cache, dtoken_embedding, np.zeros_like(dposition_embedding), empty=empty)
        dposition_embedding[: dy.shape[0]] += dy.sum(axis=1)

    return {"embedding_backward": embedding_backward}


def residual_gradient_through_the_norm(ops):
    def add_norm_backward(dtotal, dy, *args, **keywords):
        return ops.add_norm_backward(np.zeros_like(dtotal), dy + dtotal, *args, **keywords)

    return {"add_norm_backward": add_norm_backward}


def branch_gradient_without_its_dropout(ops):
    return {"dropout_backward": lambda dy, rate, key, *, empty: dy.copy()}


def mean_over_the_rows_and_not_the_targets(ops):
    def lm_head_loss_and_grad(x, weight, targets, n_targets, dweight, *, empty):
        loss, _ = ops.lm_head_loss_and_grad(x, weight, targets, n_targets, np.zeros_like(dweight), empty=empty)
        _, dx = ops.lm_head_loss_and_grad(x, weight, targets, len(targets), dweight, empty=empty)
        return loss, dx

    return {"lm_head_loss_and_grad": lm_head_loss_and_grad}


@pytest.mark.parametrize(
    ("mistake", "name"),
    [
        (head_without_gradient, "token_embedding"),
        (table_without_gradient, "token_embedding"),
        (positions_summed_over_time, "position_embedding"),
        (residual_gradient_through_the_norm, "norm_1"),
        (branch_gradient_without_its_dropout, "mlp.down"),
        (mean_over_the_rows_and_not_the_targets, "final_norm"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_wrong_gradient_is_caught_by_name(backend, mistake, name):
    config = small_config(dropout=0.2)
    model = GPT(config, dtype="float64", backend=backend)
    set_weights_of_order_one(model, seed=4)
    batch = random_batch(config, B=4, T=4)
    n_targets = np.count_nonzero(batch.targets >= 0)

    def check():
        _, gradients = gradients_of(model, batch)
        arrays = {key: model.params[key] for key in gradients if name in key}
        check_gradients(
            lambda: training_loss(model, batch, n_targets=n_targets),
            arrays,
            {key: gradients[key] for key in arrays},
            elementwise_up_to=0,
        )

    check()
    model.ops = patched(model.ops, **mistake(model.ops))
    with pytest.raises(AssertionError, match=f"gradient of '.*{name}.*' is wrong"):
        check()


def masks_that_ignore_earlier_rows(ops):
    def with_first_0(function):
        return lambda x, rate, key, *, empty: function(x, rate, key._replace(first=0), empty=empty)

    return {name: with_first_0(getattr(ops, name)) for name in ("dropout_forward", "dropout_backward")}


def attention_masks_that_ignore_earlier_rows(ops):
    def with_first_0(function):
        return lambda *args, key, **keywords: function(*args, key=key._replace(first=0), **keywords)

    return {name: with_first_0(getattr(ops, name)) for name in ("attention_forward", "attention_backward")}


def weight_gradient_overwritten(ops):
    def linear_backward(dy, x, weight, dweight, dbias=None, **options):
        dweight[...] = 0.0
        return ops.linear_backward(dy, x, weight, dweight, dbias, **options)

    return {"linear_backward": linear_backward}


def mean_over_the_targets_of_the_micro_batch(ops):
    def lm_head_loss_and_grad(x, weight, targets, n_targets, dweight, *, empty):
        return ops.lm_head_loss_and_grad(x, weight, targets, np.count_nonzero(targets >= 0), dweight, empty=empty)

    return {"lm_head_loss_and_grad": lm_head_loss_and_grad}


@pytest.mark.parametrize(
    "mistake",
    [
        masks_that_ignore_earlier_rows,
        attention_masks_that_ignore_earlier_rows,
        weight_gradient_overwritten,
        mean_over_the_targets_of_the_micro_batch,
    ],
)
def test_a_wrong_accumulation_is_caught(backend, mistake):
    def plant(model):
        model.ops = patched(model.ops, **mistake(model.ops))

    check_split(backend, (5, 3))
    with pytest.raises(AssertionError, match="differs"):
        check_split(backend, (5, 3), plant)
