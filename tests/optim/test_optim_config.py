"""Settings out of range are refused by name, before anything is computed with them."""

from dataclasses import asdict

import pytest

from npllm.errors import ConfigError
from npllm.optim import BatchConfig, OptimConfig

NAN = float("nan")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lr": -1e-3}, "optim.lr is -0.001"),
        ({"lr": NAN}, "optim.lr is nan"),
        ({"min_lr": -1.0}, "optim.min_lr is -1.0"),
        ({"warmup_steps": -1}, "optim.warmup_steps is -1"),
        ({"eps": 0.0}, "optim.eps is 0.0; set it above 0"),
        ({"eps": NAN}, "optim.eps is nan"),
        ({"weight_decay": -0.1}, "optim.weight_decay is -0.1"),
        ({"grad_clip": -1.0}, "optim.grad_clip is -1.0"),
        ({"grad_clip": NAN}, "optim.grad_clip is nan"),
        ({"beta1": 1.0}, "optim.beta1 is 1.0"),
        ({"beta1": NAN}, "optim.beta1 is nan"),
        ({"beta2": -0.1}, "optim.beta2 is -0.1"),
        ({"lr": 1e-4, "min_lr": 1e-3}, "optim.min_lr = 0.001 is above optim.lr = 0.0001"),
        ({"name": "lion"}, "optim.name is 'lion'; choose one of adamw, muon, adam, sgd"),
        ({"cooldown": 0.0}, "optim.cooldown is 0.0; set it above 0 and to at most 1"),
        ({"cooldown": 1.5}, "optim.cooldown is 1.5"),
        ({"cooldown": NAN}, "optim.cooldown is nan"),
        ({"decay": "step"}, "optim.decay is 'step'; choose one of cosine, linear"),
    ],
)
def test_bad_optim_value_is_refused_by_name(fields, message):
    with pytest.raises(ConfigError, match=message):
        OptimConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": 0}, "batch.size is 0"),
        ({"micro_size": -2}, "batch.micro_size is -2"),
        ({"ramp_steps": -1}, "batch.ramp_steps is -1"),
        ({"ramp_start": 0}, "batch.ramp_start = 0"),
        ({"size": 8, "ramp_start": 9}, "batch.ramp_start = 9 is not between 1 and batch.size = 8"),
    ],
)
def test_bad_batch_value_is_refused_by_name(fields, message):
    with pytest.raises(ConfigError, match=message):
        BatchConfig(**fields)


def test_edges_are_allowed():
    zero = dict.fromkeys(("lr", "min_lr", "warmup_steps", "weight_decay", "grad_clip", "beta1", "beta2"), 0)
    assert asdict(OptimConfig(**zero)).items() >= zero.items()
    assert OptimConfig(lr=1e-3, min_lr=1e-3).min_lr == 1e-3
    assert BatchConfig(size=1, micro_size=1, ramp_start=1).ramp_start == 1
