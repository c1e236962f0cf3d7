"""The plan of an update: figures computed by hand, limits, and memory."""

from dataclasses import replace

import pytest

from npllm.distributed import Ranks
from npllm.distributed.costs import Network
from npllm.distributed.tree import leaves_of
from npllm.model import GPT, Architecture
from npllm.model.footprint import parameter_bytes
from npllm.optim import BatchConfig, OptimConfig, build_optimizer
from npllm.planning.cost_model import CostModel, Speed, bytes_per_parameter, memory_of_rank, powers_of_two, ramp
from npllm.training.config import RunConfig, TrainConfig
from npllm.training.memory import pretraining_memory

MODEL = Architecture(n_layer=2, n_head=2, n_embd=16, block_size=32, bias=False)
SPEED = Speed(flops=1e9, memory_bandwidth=1e8)
FREE = Network(latency=0.0, bandwidth=1e30, memory_bandwidth=1e30)
SLOW = Network(latency=1e-4, bandwidth=1e8, memory_bandwidth=1e8)


def config_of(optimizer="adamw", steps=None, **batch) -> RunConfig:
    settings = BatchConfig(**({"size": 64, "micro_size": 4} | batch))
    return RunConfig(model=MODEL, batch=settings, optim=OptimConfig(name=optimizer), train=TrainConfig(steps=steps))


def plan_of(network=SLOW, **settings) -> CostModel:
    return CostModel(config_of(**settings), 100, SPEED, network)


def test_one_rank_by_hand():
    """16 micro-batches of 4 rows of 32 tokens, 15 additions, an update with Adam."""
    plan = plan_of()
    step, n_bytes = plan.step(1), parameter_bytes(plan.model, "float32")
    assert (step.ranks, step.micro_batches, step.tokens, step.bytes_sent, step.communication) == (1, 16, 2048, 0, 0)
    assert step.compute == pytest.approx(2048 * plan.model.flops_per_token(32) / 1e9)
    assert step.additions == pytest.approx(15 * 6 * n_bytes / 1e8)
    assert step.update == pytest.approx(9 * n_bytes / 1e8)
    assert step.seconds == step.compute + step.additions + step.update
    assert step.efficiency(step) == 1.0


def test_two_ranks_by_hand():
    plan = plan_of()
    step, n_bytes = plan.step(2), parameter_bytes(plan.model, "float32")
    assert step.micro_batches == 8
    assert step.bytes_sent == n_bytes
    assert step.compute == pytest.approx(plan.step(1).compute / 2)
    assert step.additions == pytest.approx(7.5 * 6 * n_bytes / 1e8)
    assert step.update == pytest.approx((9 / 2 + 1 / 2) * n_bytes / 1e8), "the other half is set to zero"
    assert step.communication == pytest.approx(15e-4 + ((n_bytes - BLOCK) / 2 + n_bytes / 2) / 1e8), "see below"


BLOCK = 4 * (16 * 48 + 16 * 16 + 2 * 16 * 64)  # bytes of the matrices of a block


def test_blocks_travel_while_compute_goes_on():
    """Half of the second block is sent during the backward of a micro-batch, which is
    long enough to hide it, or too short. Not hidden are the rest of the gradient, in
    four spans, and half of the weights, and ten small messages. Inside a host nothing
    is hidden."""
    plan = plan_of()
    fast = replace(plan, speed=plan.speed._replace(flops=1e12))
    backward = 2 / 3 * 4 * 32 * plan.model.flops_per_token(32) / 1e12
    assert 0 < backward < 1e-4
    assert fast.step(2).communication - plan.step(2).communication == pytest.approx(1e-4 + BLOCK / 2 / 1e8 - backward)
    inside, also = (replace(each, network=SLOW._replace(ranks_per_host=2)) for each in (plan, fast))
    assert inside.step(2).communication == also.step(2).communication > fast.step(2).communication


@pytest.mark.parametrize("size", [1, 3, 11, 16, 63])
@pytest.mark.parametrize("network", [FREE, SLOW], ids=["free", "slow"])
def test_more_ranks_are_never_more_efficient(size, network):
    plan = plan_of(network, size=size, micro_size=1)
    alone, *others = plan.steps(256)
    shares = [step.efficiency(alone) for step in (alone, *others)]
    assert shares[0] == 1.0
    assert all(after <= before * (1 + 1e-12) for before, after in zip(shares, shares[1:], strict=False))
    sent = [step.bytes_sent for step in (alone, *others)]
    assert sent == sorted(sent)


@pytest.mark.parametrize("n", range(1, 40))
def test_no_rank_is_busier_than_the_first(n):
    for size in powers_of_two(64):
        assert max(len(leaves_of(rank, size, n)) for rank in range(size)) == len(leaves_of(0, size, n))


def test_the_busiest_rank_counts():
    """Eleven micro-batches on two ranks are eight and three."""
    plan = plan_of(FREE, size=11, micro_size=1)
    assert plan.step(2).micro_batches == 8
    assert plan.step(2).compute == pytest.approx(plan.step(1).compute * 8 / 11)
    one_row_short = plan_of(size=63)
    assert one_row_short.step(1).tokens == 63 * 32
    assert one_row_short.step(1).compute == pytest.approx(plan_of().step(1).compute * 63 / 64)


def test_where_it_stops_without_micro_batches():
    """With sixteen micro-batches and a free network, 16 ranks are all busy; of 32 one
    half is idle, and the others still set pieces of the gradient to zero."""
    plan = plan_of(FREE)
    assert plan.last_efficient().ranks == 16
    assert 0.45 < plan.step(32).efficiency(plan.step(1)) < 0.5 < plan.step(16).efficiency(plan.step(1))


def test_where_it_stops_for_the_network():
    slowest = SLOW._replace(bandwidth=1e4)
    assert plan_of(slowest).last_efficient().ranks == 1


def test_a_ramp_leaves_ranks_idle():
    """Its first batches have one micro-batch, so of 16 ranks one works."""
    growing = plan_of(FREE, ramp_start=4, ramp_steps=40)
    assert ramp(growing.config)[0] == 4
    assert len(ramp(growing.config)) == 40
    assert len(ramp(config_of(steps=10, ramp_start=4, ramp_steps=40))) == 10
    assert growing.ramp_efficiency(1) == 1.0
    assert growing.ramp_efficiency(16) < growing.step(16).efficiency(growing.step(1))
    assert plan_of().ramp_efficiency(16) is None


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "sgd"])
def test_memory_of_one_rank_is_that_of_a_run(optimizer):
    config = config_of(optimizer)
    planned, of_run = memory_of_rank(config, 100, 1), pretraining_memory(config, 100, 0)
    assert replace(planned, program=0) == replace(of_run, program=0)


def test_memory_of_many_ranks():
    """The moments are divided; sums of other ranks need one buffer, those that wait one
    for each level of the rank's own tree."""
    config = config_of()
    alone, two, many = (memory_of_rank(config, 100, ranks) for ranks in (1, 2, 16))
    params = parameter_bytes(plan_of().model, "float32")
    assert (alone.moments, alone.gradients) == (2 * params, params * 5)
    assert (two.moments, two.gradients) == (pytest.approx(params, abs=128), params * 4)
    assert (many.moments, many.gradients) == (pytest.approx(params / 8, abs=128), params * 2)
    assert two.weights == many.weights == alone.weights
    assert two.aside - alone.aside == 2 * params, "to save, rank 0 has all moments beside their copy"
    assert bytes_per_parameter(config, 1) == 4 * (1 + 5 + 2)
    assert bytes_per_parameter(config, 16) == 4 * (1 + 2 + 2 / 16)


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "sgd"])
@pytest.mark.parametrize("size", [2, 4, 8])
def test_moments_are_those_of_the_rank_with_the_most(optimizer, size):
    """As the optimiser divides them; of Muon, a bound by at most one matrix."""
    config = config_of(optimizer)
    model, taken = GPT(plan_of().model), []
    for rank in range(size):
        rule = build_optimizer(model, config.optim)
        ranks = Ranks()
        ranks.rank, ranks.size = rank, size
        rule.shard(ranks)
        taken.append(sum(array.nbytes for array in rule.state.values()))
    planned = memory_of_rank(config, 100, size).moments
    slack = 2 * 4 * 16 * 64 if optimizer == "muon" else 0
    assert 0 <= planned - max(taken) <= slack


def test_muon_cuts_no_matrix():
    divided, whole = (memory_of_rank(config_of(name), 100, 64).moments for name in ("adamw", "muon"))
    matrix = 4 * 16 * 64
    assert divided < 2 * matrix <= whole
