"""The verb `npllm plan`. Like `npllm pretrain` it takes every field of a recipe."""

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING

from tyro.conf import Positional

from npllm.errors import ConfigError
from npllm.runs.arguments import is_option

if TYPE_CHECKING:  # `npllm --help` stays quick
    from npllm.training.config import DataConfig, RunConfig

FIRST_OPTIONS = ("model.n_layer", "model.n_embd", "model.block_size", "batch.size", "batch.micro_size")
LATENCY, BANDWIDTH = 2.0, 12.5  # microseconds and GB/s: InfiniBand of 100 Gbit/s
CHARACTERS = 128  # planned for a tokenizer of characters, whose number is that of the text


def plan(
    recipe: Positional[str] = "default",
    *,
    ranks: int = 64,
    ranks_per_host: int = 1,
    latency: float = LATENCY,
    bandwidth: float = BANDWIDTH,
    memory: float | None = None,
    flops: float | None = None,
    memory_bandwidth: float | None = None,
) -> None:
    """Predict what a pretraining takes on many ranks: memory, traffic, time.

    Args:
        recipe: default, half-hour, classic, shakespeare-char, or a TOML file
        ranks: processes, a power of two
        ranks_per_host: of them on one machine, a power of two
        latency: of the network, in microseconds; Ethernet has 20 to 50
        bandwidth: of the network, in GB/s in each direction; 12.5 = 100 Gbit/s
        memory: of a rank, in GB; none = what this machine has left, divided
        flops: floating-point operations of a rank per second, such as 5e11; none =
            measured here, with the cores of this machine divided between its ranks
        memory_bandwidth: GB/s at which a rank adds arrays; none = measured here
    """


def plan_of(arguments: list[str]) -> Callable[..., None]:
    """Return the verb with the fields of the recipe that the arguments name, and with
    their values as defaults."""
    from npllm.training.config import load_recipe
    from npllm.training.stage_verb import sections_with_defaults

    config = load_recipe(recipe_in(arguments) or "default")
    sections = sections_with_defaults(config)
    own = inspect.signature(plan)
    signature = inspect.Signature([*own.parameters.values(), *sections])

    def verb(*args, **kwargs):
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        fields = {section.name: given.pop(section.name) for section in sections}
        run_plan(type(config)(**fields), **given)

    verb.__signature__, verb.__doc__ = signature, plan.__doc__
    verb.__annotations__ = {parameter.name: parameter.annotation for parameter in signature.parameters.values()}
    return verb


def recipe_in(arguments: list[str]) -> str | None:
    """Return the first argument that is neither an option nor the value of one."""
    before = ""
    for argument in arguments:
        if not is_option(argument) and argument != "--" and (not is_option(before) or "=" in before):
            return argument
        before = argument
    return None


def run_plan(
    config: "RunConfig",
    recipe: str,
    ranks: int,
    ranks_per_host: int,
    latency: float,
    bandwidth: float,
    memory: float | None,
    flops: float | None,
    memory_bandwidth: float | None,
) -> None:
    """Print a plan. The arguments are those of `plan`."""
    import numba

    from npllm.distributed.costs import Network
    from npllm.output import TextConsole
    from npllm.planning import cost_model, speed, words
    from npllm.training.available import memory_left
    from npllm.training.machine import limit_threads, usable_dtype

    for name, value in (("ranks", ranks), ("ranks_per_host", ranks_per_host)):
        if not 1 <= value <= cost_model.MOST_RANKS or value & (value - 1):
            raise ConfigError(f"--{name} is {value}; give a power of two from 1 to {cost_model.MOST_RANKS}.")
    above = {"bandwidth": bandwidth, "memory": memory, "flops": flops, "memory_bandwidth": memory_bandwidth}
    for name, value in above.items():
        if value is not None and not 0 < value < float("inf"):
            raise ConfigError(f"--{name} is {value}; set it above 0.")
    if not 0 <= latency < float("inf"):
        raise ConfigError(f"--latency is {latency}; set it to at least 0.")
    limit_threads(config.train.threads)
    threads = config.train.threads or max(1, numba.config.NUMBA_NUM_THREADS // ranks_per_host)
    vocab_size, console = vocabulary_of(config.data), TextConsole()
    architecture = cost_model.model_of(config, vocab_size)
    if flops is None:
        with console.status("measuring this machine"):
            dtype = usable_dtype(config.train.dtype)
            flops = speed.measure_flops(architecture, config.batch.micro_size, dtype, threads, ranks_per_host)
    adds = speed.measure_memory() if memory_bandwidth is None else 1e9 * memory_bandwidth
    network = Network(1e-6 * latency, 1e9 * bandwidth, adds, ranks_per_host)
    model = cost_model.CostModel(config, vocab_size, cost_model.Speed(flops, adds), network)
    with speed.threads_of(threads):
        needed = cost_model.memory_of_rank(config, vocab_size, ranks)
    room = memory_left().n_bytes // ranks_per_host + needed.program if memory is None else int(1e9 * memory)
    for line in words.describe(recipe, model):
        console.print(line, soft_wrap=True)
    console.print("", words.memory_table(needed, ranks), "", words.step_table(model.steps(ranks)), "")
    for line in (*words.where_it_stops(model, ranks), *words.what_fits(model, needed, ranks, room)):
        console.print(line, soft_wrap=True)


def vocabulary_of(data: "DataConfig") -> int:
    """Return the size of the vocabulary of a config, without reading its text. A
    tokenizer of characters is taken to have CHARACTERS."""
    from npllm.errors import DataError
    from npllm.files.user_path import user_path
    from npllm.tokenizer import Tokenizer, byte_tokenizer

    if data.tokenizer in ("bpe", "char", "byte"):
        return {"bpe": data.vocab_size, "char": CHARACTERS, "byte": byte_tokenizer().vocab_size}[data.tokenizer]
    if not user_path(data.tokenizer).exists():
        raise DataError(f"data.tokenizer {data.tokenizer} is no file, and none of char, byte, bpe; name one.")
    return Tokenizer.load(data.tokenizer, split=data.split).vocab_size
