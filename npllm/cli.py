"""The command line: one typed function per verb, thin. `npllm VERB --help` shows its options, defaults and units."""

import errno
import functools
import inspect
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from tyro.conf import Positional

from npllm.errors import ConfigError, DataError, NpllmError, NpllmWarning
from npllm.runs.config_file import nearest, parse_arguments
from npllm.training.interrupts import signals_interrupt
from npllm.training.stages import STAGES, input_checks, load_stage, stage_in

if TYPE_CHECKING:
    from npllm.training.stage import Stage


def resume(run: Positional[Path]) -> None:
    """Go on exactly where a run stopped, however it stopped.

    Args:
        run: folder of the run
    """
    from npllm.runs.run_folder import open_run
    from npllm.training.stage import train_run

    folder = open_run(run)
    train_run(folder, Console(), stage_in(folder.config))


def generate(
    run: Positional[Path],
    *,
    prompt: str = "",
    max_tokens: int = 256,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float = 1.0,
    seed: int = 0,
    dtype: Literal["float32", "bf16"] | None = None,
) -> None:
    """Write text with a trained model, as it comes.

    Args:
        run: folder of the run, or a checkpoint in it
        prompt: text to go on from, or to answer (a model that learnt from conversations); empty = begin a document
        max_tokens: longest continuation, in tokens; past the model's window it forgets the older half of the text
        temperature: 0 = always the likeliest token, 1 = as the model says, above = more surprising
        top_k: choose among the k likeliest tokens only
        top_p: choose among the fewest likeliest tokens that together reach this probability
        seed: same seed, same text
        dtype: bf16 = with weights rounded to bfloat16, half as many bytes to read; none = as in training
    """
    import npllm
    from npllm.data.prompt_format import PromptFormat
    from npllm.generation import check_writes

    model, tokenizer = npllm.load(run, dtype=dtype)
    check_writes(model, run)
    pieces = npllm.generate(
        model,
        tokenizer,
        prompt,
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
    )
    if not PromptFormat(tokenizer).is_chat:  # what continues the prompt stands behind it; what answers it, alone
        print(prompt, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


def evaluate(run: Positional[Path], *, data: Path | None = None) -> None:
    """Loss, perplexity and bits per byte over a whole text.

    Args:
        run: folder of the run, or a checkpoint in it
        data: a UTF-8 text file; none = the run's validation text
    """
    from npllm.training.results import evaluate_run

    result = evaluate_run(run, data)
    print(f"loss           {result.loss:.4f} nats per token")
    print(f"perplexity     {result.perplexity:.3f}")
    print(f"bits per byte  {result.bits_per_byte:.4f}")
    print(f"text           {result.n_bytes:,} bytes, {result.n_tokens:,} predicted tokens")


def verify(run: Positional[Path]) -> None:
    """Check every file of a run: hashes, contents, and that they belong together.

    Args:
        run: folder of the run
    """
    from npllm.runs.run_folder import open_run
    from npllm.runs.verify import verify_run

    folder = open_run(run)
    results = dict(verify_run(folder, input_checks(folder)))
    for path, complaint in results.items():
        print(f"{'damaged' if complaint else 'ok':9}{path.relative_to(run)}{f': {complaint}' if complaint else ''}")
    if damaged := sum(complaint is not None for complaint in results.values()):
        raise DataError(f"{run}: {damaged} of {len(results)} files are damaged; what to do stands beside each.")


def warmup() -> None:
    """Compile every kernel now, so that later runs begin within seconds."""
    from npllm.training.compile_ahead import compiling_ahead
    from npllm.training.warmup import compile_kernels, every_kind

    console = Console()
    with console.status("compiling kernels (kept for later runs)"):
        with compiling_ahead(every_kind(), console):
            pass
        compile_kernels()


def tokenizer_train(
    source: Positional[tuple[str, ...]], *, out: Path, vocab_size: int = 2048, field: str | None = None
) -> None:
    """Train a byte-level BPE tokenizer.

    Args:
        source: stdlib, pydoc, or files, folders and glob patterns
        out: tokenizer.json to write
        vocab_size: number of tokens
        field: of each line of a .jsonl file, what holds the text
    """
    from npllm.data.corpora import load_corpus
    from npllm.tokenizer import train_bpe

    corpus = load_corpus(source, field=field)
    train_bpe((document.text for document in corpus.train + corpus.val), vocab_size).save(out)
    print(*corpus.remarks, sep="\n", end="\n" if corpus.remarks else "")
    print(f"{out}: {vocab_size} tokens from {(corpus.train_bytes + corpus.val_bytes) / 1e6:.1f} MB")


def tokenizer_encode(tokenizer: Positional[Path], text: Positional[str | None] = None) -> None:
    """Print the token ids of a text.

    Args:
        tokenizer: tokenizer.json or a folder with one, such as a run
        text: the text; none = standard input
    """
    from npllm.tokenizer import Tokenizer

    print(*Tokenizer.load(tokenizer).encode(_standard_input() if text is None else text))


def tokenizer_decode(tokenizer: Positional[Path], ids: Positional[tuple[int, ...]] = ()) -> None:
    """Print the text of token ids.

    Args:
        tokenizer: tokenizer.json or a folder with one, such as a run
        ids: the ids; none = from standard input
    """
    from npllm.tokenizer import Tokenizer

    try:
        numbers = list(ids) or [int(word) for word in _standard_input().split()]
    except ValueError as error:
        raise DataError(f"Standard input should hold token ids, whole numbers between spaces ({error}).") from error
    print(Tokenizer.load(tokenizer).decode(numbers))


def demo_spike(*, out: Path | None = None, seed: int = 0) -> None:
    """Poison a stretch of the data and train thrice: with rollback, only skipping updates, and undefended.

    Args:
        out: folder of the first run, and of spike.png; none = runs/spike-demo
        seed: of the initial weights, the order of the data and the poison
    """
    from npllm.runs.new_run import claim_run
    from npllm.training.spike_demo import run_demo

    with claim_run(out, "spike-demo") as path:
        run_demo(path, seed, Console())


def chat(
    run: Positional[Path], *, max_tokens: int = 256, temperature: float = 0.8, top_p: float = 0.95, seed: int = 0
) -> None:
    """Talk with a model that npllm sft made; an empty line or Ctrl-D ends it.

    Args:
        run: folder of the run, or a checkpoint in it
        max_tokens: longest answer, in tokens; past the model's window it forgets the oldest of the conversation
        temperature: 0 = always the likeliest token, 1 = as the model says
        top_p: choose among the fewest likeliest tokens that together reach this probability
        seed: same seed and same questions, same answers
    """
    from npllm.finetuning.chat import chat as run_chat

    run_chat(run, max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)


def rlhf(*, task: str, out: Path | None = None, seeds: int = 1, overoptimise: bool = False) -> None:
    """The whole road on one task: pretrain, SFT, reward, PPO and its rivals, report card. Continues what it began.

    Args:
        task: paths (a few minutes), code (a quarter of an hour), or a Python file with a Task
        out: folder of the road; none = runs/rlhf-TASK
        seeds: how many times to walk it, each with a seed of its own; figures are then means over them
        overoptimise: also let policies fool reward models that learnt from few pairs; four times as long altogether
    """
    from npllm.rlhf.report_card import walk_and_report

    walk_and_report(task, out, seeds, Console(), overoptimise=overoptimise)


VERBS: dict[str, Callable[..., None]] = {
    "resume": resume,
    "generate": generate,
    "chat": chat,
    "evaluate": evaluate,
    "verify": verify,
    "warmup": warmup,
    "tokenizer train": tokenizer_train,
    "tokenizer encode": tokenizer_encode,
    "tokenizer decode": tokenizer_decode,
    "rlhf": rlhf,
    "demo spike": demo_spike,
}
LARGEST_INPUT = 1 << 26  # characters of standard input, which are all read before the first of them is used
GROUPS = {verb.split()[0] for verb in VERBS if " " in verb}  # first words that are not yet a verb


def main(arguments: list[str] | None = None) -> int:
    """Run one verb. Exit codes: 0 done, 2 usage, 3 bad file, 4 gave up, 5 out of disk or memory, 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    words = [argument for argument in arguments if argument not in ("-h", "--help")]
    if not words or (len(words) == 1 and words[0] in GROUPS):
        print(_usage())
        return 0 if len(words) < len(arguments) else 2
    try:
        with signals_interrupt(), warnings.catch_warnings():
            warnings.simplefilter("always", NpllmWarning)
            warnings.showwarning = functools.partial(_show_warning, warnings.showwarning)
            _run_verb(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output, such as `head`, has left; Python's last flush must not fail too
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (NpllmError, KeyboardInterrupt, MemoryError, OSError) as error:
        if debug:
            raise
        message, exit_code = _explain(error)
        print(f"npllm: {message}", file=sys.stderr)
        return exit_code
    return 0


def _show_warning(otherwise: Callable[..., None], message: Warning, category: type[Warning], *place) -> None:
    if issubclass(category, NpllmWarning):
        print(f"npllm: {message}", file=sys.stderr)
    else:
        otherwise(message, category, *place)


def _explain(error: BaseException) -> tuple[str, int]:
    """What went wrong in one sentence, and the exit code."""
    if isinstance(error, NpllmError):
        return str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    if isinstance(error, MemoryError):
        return "out of memory; lower batch.micro_size, model.block_size or model.n_embd.", 5
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{error.filename}: {error.strerror}; free some.", 5
    return f"{error.filename}: {error.strerror}; check the path.", 3


def _run_verb(arguments: list[str]) -> None:
    words = 2 if arguments[0] in GROUPS else 1
    verb, rest = " ".join(arguments[:words]), arguments[words:]
    known = [*STAGES, *VERBS]
    if verb not in known:
        raise ConfigError(f"{verb!r} is not a verb of npllm{nearest(verb, known)}; npllm --help lists them.")
    if verb in VERBS:
        function = VERBS[verb]
    else:
        stage = load_stage(verb)
        function = _verb_of(stage, STAGES[verb].summary, stage.default_config(rest))
    # Parsing ends before the verb begins: what the verb prints or raises is its own.
    parse_arguments(_deferred(function), rest, prog=f"npllm {verb}")()


def _deferred(function: Callable[..., None]) -> Callable[..., Callable[[], None]]:
    """The function with a call that waits."""

    @functools.wraps(function)
    def bind(*args, **kwargs):
        return functools.partial(function, *args, **kwargs)

    bind.__signature__ = inspect.signature(function)
    return bind


def _verb_of(stage: "Stage", summary: str, config: Any) -> Callable[..., None]:
    """The function that makes and trains a run of a stage. Its parameters are those of the stage's
    inputs, `out`, and the sections of the stage's config, whose defaults are those of `config`."""
    inputs = [p for p in inspect.signature(stage.inputs).parameters.values() if p.name not in ("config", "console")]
    sections = [p.replace(default=getattr(config, p.name)) for p in inspect.signature(type(config)).parameters.values()]
    out = inspect.Parameter("out", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Path | None)
    signature = inspect.Signature([*inputs, out, *sections])

    def verb(*args, **kwargs):
        from npllm.training.stage import start_run

        given = signature.bind(*args, **kwargs).arguments
        fields = {section.name: given[section.name] for section in sections}
        arguments = {parameter.name: given[parameter.name] for parameter in inputs}
        start_run(stage, type(config)(**fields), given["out"], Console(), **arguments)

    verb.__signature__ = signature
    verb.__annotations__ = {parameter.name: parameter.annotation for parameter in signature.parameters.values()}
    described = inspect.cleandoc(stage.inputs.__doc__).split("Args:\n")[-1]
    verb.__doc__ = f"{summary}\n\nArgs:\n{described}\n    out: folder of the new run; none = one below runs/"
    return verb


def _usage() -> str:
    summaries = {verb: stage.summary for verb, stage in STAGES.items()}
    summaries |= {verb: (function.__doc__ or "").splitlines()[0] for verb, function in VERBS.items()}
    lines = [f"  {verb:18}{summary}" for verb, summary in summaries.items()]
    return "\n".join(
        [
            "npllm VERB ...: a language model from raw text to generation",
            "",
            *lines,
            "",
            "npllm VERB --help shows more.",
        ]
    )


def _standard_input() -> str:
    try:
        text = sys.stdin.read(LARGEST_INPUT + 1)
    except UnicodeDecodeError as error:
        raise DataError(f"Standard input is not UTF-8 ({error}).") from error
    if len(text) > LARGEST_INPUT:
        raise DataError(f"Standard input has more than {LARGEST_INPUT:,} characters; give less of it.")
    return text
