"""The moments that are divided between ranks, without MPI: one rank after another."""

import numpy as np
import pytest

from npllm.distributed import Ranks
from npllm.model import GPT, ModelConfig
from npllm.optim import OptimConfig, build_optimizer

CONFIG = ModelConfig(
    n_layer=2, n_head=2, n_embd=24, block_size=8, vocab_size=50, norm="rmsnorm", mlp="swiglu", bias=False
)


class Pretended(Ranks):
    """A rank whose collective operations the test does by itself."""

    def __init__(self, rank: int, size: int):
        self.rank, self.size = rank, size


def model_and_optimizer(name: str, ranks: Ranks):
    model = GPT(CONFIG)
    optimizer = build_optimizer(model, OptimConfig(name=name))
    optimizer.shard(ranks)
    return model, optimizer


@pytest.mark.parametrize("size", [2, 4, 8])
@pytest.mark.parametrize("name", ["adamw", "sgd", "muon"])
def test_the_pieces_of_all_ranks_are_the_update_of_one(name, size):
    """Bit for bit, after two updates. Catches a cut through a matrix of Muon, and
    moments that are read at the wrong place."""
    models, optimizers = zip(*(model_and_optimizer(name, Pretended(rank, size)) for rank in range(size)), strict=True)
    whole, alone = model_and_optimizer(name, Ranks())
    for update in range(2):
        gradient = np.random.default_rng(update).standard_normal(len(whole.grads.flat)).astype(np.float32)
        norm = whole.ops.gradient_norm(gradient)
        for model, optimizer in ((whole, alone), *zip(models, optimizers, strict=True)):
            model.grads.flat[:] = gradient
            optimizer.step(grad_clip=1.0, norm=norm)
            assert not model.grads.flat.any()
        collected = whole.params.flat.copy()
        for model, optimizer in zip(models, optimizers, strict=True):
            collected[optimizer._own] = model.params.flat[optimizer._own]
        assert np.array_equal(collected, whole.params.flat)
        for model in models:
            model.params.flat[:] = collected
    for moment, expected in alone.state.items():
        in_order = sorted(optimizers, key=lambda optimizer: optimizer._own.start)
        assert np.array_equal(np.concatenate([each.state[moment] for each in in_order]), expected)


def test_each_rank_has_its_share():
    """All pieces together are the moments once, and none is much larger."""
    optimizers = [model_and_optimizer("adamw", Pretended(rank, 4))[1] for rank in range(4)]
    lengths = [len(optimizer.state["adam_m"]) for optimizer in optimizers]
    assert sum(lengths) == len(optimizers[0].model.params.flat)
    assert max(lengths) - min(lengths) <= 32
