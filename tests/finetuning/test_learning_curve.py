"""A point of the learning curve is the same as the training written out here."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from model.model_cases import set_weights_of_order_one, small_config

from npllm.finetuning import learning_curve
from npllm.finetuning.adaptation import AdaptConfig, adapted, lr_scales
from npllm.finetuning.classifier import ClassifierGradients, Texts
from npllm.finetuning.classify_config import ClassifyConfig, ClassifySettings
from npllm.finetuning.labels import balanced_subset
from npllm.finetuning.learning_curve import Point, train_point
from npllm.model import GPT
from npllm.optim import BatchConfig, OptimConfig, build_optimizer, learning_rate
from npllm.training.config import TrainConfig
from npllm.training.interrupts import StopRequest

SEED, LABELS, UPDATES = 5, 3, 7  # three epochs of 3 × 3 texts in batches of 4


def texts(n: int, seed: int) -> Texts:
    rng = np.random.default_rng(seed)
    return Texts([rng.integers(0, 11, length).astype(np.int32) for length in rng.integers(1, 7, n)], np.arange(n) % 3)


@pytest.mark.parametrize("method", ["pretrained", "scratch"])
def test_a_point_is_a_training_of_its_own(monkeypatch, method):
    tested = []

    def evaluate(model, *what):
        tested.append((model.params.flat.copy(), *what))
        return SimpleNamespace(accuracy=0.25)

    monkeypatch.setattr(learning_curve, "evaluate_classifier", evaluate)
    base = GPT(small_config(dropout=0.1), dtype="float64")
    set_weights_of_order_one(base, seed=1)
    config = ClassifyConfig(
        classify=ClassifySettings(min_updates=2, aux_lm=0.7, pool="last", scratch_lr=0.02),
        adapt=AdaptConfig(layer_decay=0.5),
        optim=OptimConfig(lr=0.01, min_lr=0.0, warmup_steps=2, decay="linear", grad_clip=0.5),
        batch=BatchConfig(size=4, micro_size=3),
        train=TrainConfig(dtype="float64"),
    )
    train, test = texts(30, 1), texts(9, 2)
    point = train_point(base, config, train, test, (method, LABELS, SEED), StopRequest())
    assert point == Point(method, LABELS, SEED, UPDATES, accuracy=0.25)

    optim, scales = config.optim, {}
    if method == "pretrained":
        model = adapted(base, AdaptConfig(), n_outputs=3, seed=SEED)
        scales = lr_scales(config.adapt, model)
    else:  # config.adapt is ignored, and the learning rate is scratch_lr
        model = GPT(replace(base.config, n_outputs=3), seed=SEED, dtype="float64")
        optim = replace(optim, lr=0.02)
    subset = train.take(balanced_subset(train.labels, LABELS, SEED))
    seeded = replace(config, train=replace(config.train, seed=SEED))
    gradients, optimizer = ClassifierGradients(subset, 0.7, "last", seeded), build_optimizer(model, optim, scales)
    for step in range(UPDATES):
        gradients(model, np.arange(4 * step, 4 * step + 4), step)
        optimizer.step(grad_clip=0.5, lr=learning_rate(step, UPDATES, optim))
    ((weights, *what),) = tested
    assert what == [test, "last"]
    np.testing.assert_array_equal(weights, model.params.flat)
