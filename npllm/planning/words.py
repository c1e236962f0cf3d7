"""A plan in tables and plain sentences."""

from collections.abc import Iterator
from math import ceil

from rich.table import Table

from npllm.model.parameters import parameter_count
from npllm.planning.cost_model import MOST_RANKS, CostModel, Step, bytes_per_parameter, powers_of_two
from npllm.training.memory import Memory

FLOAT = 4  # bytes of an activation that is sent


def in_units(number: float, unit: str) -> str:
    """Return a number with three digits and its unit, such as 1.07 GB or 1.07 M."""
    names = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
    size, prefix = next((each for each in names if number >= each[0]), (1.0, ""))
    return f"{number / size:.3g} {prefix}{unit}".rstrip()


def in_seconds(seconds: float) -> str:
    """Return a time with three digits, such as 1.5 ms."""
    size, name = next((each for each in ((1.0, "s"), (1e-3, "ms")) if seconds >= each[0]), (1e-6, "us"))
    return f"{seconds / size:,.0f} {name}" if seconds >= 1e3 * size else f"{seconds / size:.3g} {name}"


def counted(number: int, noun: str) -> str:
    """Return a number and its noun, such as 12 micro-batches."""
    return f"{number:,} {noun}{'es' * (number != 1)}"


def describe(name: str, plan: CostModel) -> Iterator[str]:
    """Yield what is planned, and what the plan assumes."""
    config, network = plan.config, plan.network
    yield f"{name}: {in_units(parameter_count(plan.model), '')} parameters, {plan.model.in_words()}"
    yield (
        f"an update: {plan.rows:,} sequences of {config.model.block_size:,} tokens, "
        f"{counted(plan.micro_batches, 'micro-batch')} of up to {config.batch.micro_size:,}"
    )
    yield (
        f"a rank computes {in_units(plan.speed.flops, 'FLOP/s')} and adds arrays at "
        f"{in_units(plan.speed.memory_bandwidth, 'B/s')}; a message takes {in_seconds(network.latency)}, a host sends "
        f"{in_units(network.bandwidth, 'B/s')}; ranks on a host: {network.ranks_per_host}"
    )
    if config.data.tokenizer == "char":
        yield f"the vocabulary is taken to be {plan.vocab_size} characters; that of a run is that of its text"


def memory_table(memory: Memory, ranks: int) -> Table:
    """Return the memory of a rank."""
    table = Table("memory of each rank", "", box=None, pad_edge=False)
    table.columns[1].justify = "right"
    rows = {
        "weights": memory.weights,
        "gradient, and sums that wait or arrive": memory.gradients,
        "moments" if ranks == 1 else f"moments, 1/{ranks} of them": memory.moments,
        "activations": memory.passes,
        "program": memory.program,
        "together": memory.total - memory.aside,
        "rank 0 in addition, to save and to report": memory.aside,
    }
    for name, n_bytes in rows.items():
        table.add_row(name, in_units(n_bytes, "B"))
    return table


def step_table(steps: list[Step]) -> Table:
    """Return a row for each number of ranks."""
    headings = "ranks", "micro-\nbatches", "seconds", "tokens/s", "effi-\nciency", "sent by\na rank", "commu-\nnication"
    table = Table(*headings, box=None, pad_edge=False)
    for column in table.columns:
        column.justify, column.no_wrap = "right", True
    for step in steps:
        table.add_row(
            f"{step.ranks:,}",
            f"{step.micro_batches:,}",
            f"{step.seconds:,.4g}",
            f"{step.tokens_per_s:,.0f}",
            f"{step.efficiency(steps[0]):.0%}",
            in_units(step.bytes_sent, "B"),
            f"{step.communication / step.seconds:.0%}",
        )
    return table


def where_it_stops(plan: CostModel, ranks: int) -> Iterator[str]:
    """Yield where more ranks stop helping, and why."""
    last, available = plan.last_efficient(), plan.micro_batches
    if plan.config.batch.ramp_start is not None and (share := plan.ramp_efficiency(ranks)) is not None:
        yield f"While the batch grows from {plan.config.batch.ramp_start:,} sequences, the efficiency is {share:.0%}."
    if ranks > available:
        idle = ranks - available
        yield (
            f"A batch has {counted(available, 'micro-batch')}, so {idle:,} of {ranks:,} ranks would have nothing to "
            "do, and npllm refuses to start them."
        )
    if last.ranks >= MOST_RANKS:
        yield f"Up to {MOST_RANKS:,} ranks the efficiency stays above one half."
        return
    after = plan.step(2 * last.ranks)
    falls = f"From {after.ranks:,} ranks the efficiency falls below one half, to {after.efficiency(plan.step(1)):.1%}"
    if after.ranks > available:
        yield f"{falls}: no micro-batches are left; lower batch.micro_size, or raise batch.size."
        return
    yield (
        f"{falls}: {in_seconds(after.communication + after.additions)} of communication and additions stand beside "
        f"{in_seconds(after.compute)} of compute; raise batch.size, or take a faster network."
    )


def what_fits(plan: CostModel, memory: Memory, ranks: int, room: int) -> Iterator[str]:
    """Yield whether a rank has room for its weights, gradients and moments, up to which
    size of the model it has, and what divides a model that is too large.

    room: bytes of memory of a rank.
    """
    each, needed = bytes_per_parameter(plan.config, ranks), memory.total - memory.aside
    most = (room - memory.program - memory.passes) / each
    size = f"up to {in_units(most, '')} parameters" if most > 0 else "no model, because activations alone need more"
    yield (
        f"Every rank keeps whole weights and gradients, {each:.3g} bytes for a parameter, so {in_units(room, 'B')} of "
        f"memory have room for {size}."
    )
    if needed <= room:
        if memory.total > room:
            yield (
                f"Rank 0 needs {in_units(memory.total, 'B')} while it saves, more than it has; give it a host of its "
                "own."
            )
        yield "Next, when the batch cannot grow any more: " + tensor_parallel(plan, 2)
        return
    divided = needed - memory.program
    fits = (k for k in powers_of_two(MOST_RANKS) if divided / k + memory.program <= room)
    k = next(fits, None)
    yield f"This one needs {in_units(needed, 'B')}, so data parallel alone cannot train it."
    if k is None:
        yield f"No division into up to {MOST_RANKS:,} parts fits; give a rank more memory."
        return
    yield f"Next: {tensor_parallel(plan, k)}"
    yield pipeline_parallel(plan, k, ranks)


def tensor_parallel(plan: CostModel, k: int) -> str:
    """Return what k ranks exchange that divide every matrix: two all-reduces of the
    hidden states of a layer in the forward, and two in the backward. (Shoeybi et al.,
    "Megatron-LM", 2019.)"""
    config, model = plan.config, plan.model
    tokens = config.batch.micro_size * config.model.block_size
    sent = 4 * model.n_layer * 2 * (k - 1) / k * tokens * model.n_embd * FLOAT
    compute = tokens * model.flops_per_token(config.model.block_size) / plan.speed.flops / k
    return (
        f"tensor parallel, every matrix divided between {k:,} ranks. They send {in_units(sent, 'B')} each for a "
        f"micro-batch, {in_seconds(sent / plan.network.bandwidth)} beside {in_seconds(compute)} of compute."
    )


def pipeline_parallel(plan: CostModel, k: int, ranks: int) -> str:
    """Return what k groups of layers send, and how long they wait for the first and
    the last micro-batch. (Huang et al., "GPipe", 2019.)"""
    config, stages = plan.config, min(k, plan.model.n_layer)
    replicas = max(1, ranks // stages)
    own = ceil(plan.micro_batches / replicas)
    sent = 2 * config.batch.micro_size * config.model.block_size * plan.model.n_embd * FLOAT
    idle = (stages - 1) / (own + stages - 1)
    return (
        f"Or pipeline parallel: {stages:,} groups of layers, which send {in_units(sent, 'B')} for a micro-batch; with "
        f"{own:,} micro-batches in each of {replicas:,} pipelines they are idle for {idle:.0%} of the time."
    )
