"""The command line: one short typed function per verb. `npllm VERB --help` shows the
options of a verb with their defaults and units."""

import errno
import functools
import inspect
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

import npllm
from npllm.errors import ConfigError, DataError, NpllmError, NpllmWarning
from npllm.output import TextConsole, guarded_streams, printable, show
from npllm.runs.arguments import nearest, options_of, parse_arguments
from npllm.training.environment import check_environment
from npllm.training.interrupts import signals_interrupt
from npllm.training.stages import STAGES, input_checks, load_stage, stage_in

if TYPE_CHECKING:
    from npllm.training.stage import Stage


def resume(run: Positional[Path]) -> None:
    """Continue a run exactly where it stopped, however it stopped.

    Args:
        run: folder of the run
    """
    from npllm.runs.run_folder import open_run
    from npllm.training.stage import train_run

    folder = open_run(run)
    train_run(folder, TextConsole(), stage_in(folder.config))


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
    """Generate text with a trained model, token by token.

    Args:
        run: folder of the run, or a checkpoint in it
        prompt: text to continue or, for a chat model, to answer; empty = a new document
        max_tokens: most new tokens; past block_size the older half is forgotten
        temperature: 0 = the likeliest token, 1 = as the model says, above = more random
        top_k: choose among the k likeliest tokens only; none = among all
        top_p: choose among the fewest tokens that together have this probability
        seed: same seed, same text
        dtype: bf16 = weights rounded to bfloat16, half the bytes; none = as in training
    """
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
    if not PromptFormat(tokenizer).is_chat:  # print a prompt before its continuation, not before an answer
        show(prompt, end="")
    for piece in pieces:
        show(piece, end="")
    print()


def evaluate(run: Positional[Path], *, data: Path | None = None) -> None:
    """Print loss, perplexity and bits per byte over a whole text.

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
        show(f"{'damaged' if complaint else 'ok':9}{path.relative_to(run)}{f': {complaint}' if complaint else ''}")
    if damaged := sum(complaint is not None for complaint in results.values()):
        raise DataError(f"{run} has {damaged} damaged of {len(results)} files; do what the line of each one says.")


def warmup(*, clear: bool = False) -> None:
    """Compile the kernels of training and generation now; later runs start faster.

    Args:
        clear: delete all kernels that are kept from earlier first
    """
    from npllm.kernels import compiled_cache
    from npllm.training.compile_ahead import compiling_ahead
    from npllm.training.warmup import compile_kernels, every_kind

    console = TextConsole()
    if clear:
        compiled_cache.clear()
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
        field: key that holds the text in each line of a .jsonl file, such as text
    """
    from npllm.data.corpora import load_corpus
    from npllm.tokenizer import train_bpe

    corpus = load_corpus(source, field=field)
    train_bpe((document.text for document in corpus.train + corpus.val), vocab_size).save(out)
    for line in corpus.remarks:
        show(line)
    show(f"{out}: {vocab_size} tokens from {(corpus.train_bytes + corpus.val_bytes) / 1e6:.1f} MB")


def tokenizer_encode(tokenizer: Positional[Path], text: Positional[str | None] = None) -> None:
    """Print the token ids of a text.

    Args:
        tokenizer: tokenizer.json or a folder with one, such as a run
        text: the text; without it, standard input
    """
    from npllm.tokenizer import Tokenizer

    print(*Tokenizer.load(tokenizer).encode(_standard_input() if text is None else text))


def tokenizer_decode(tokenizer: Positional[Path], ids: Positional[tuple[int, ...]] = ()) -> None:
    """Print the text of token ids.

    Args:
        tokenizer: tokenizer.json or a folder with one, such as a run
        ids: the ids; without them, standard input
    """
    from npllm.tokenizer import Tokenizer

    try:
        numbers = list(ids) or [int(word) for word in _standard_input().split()]
    except ValueError as error:
        raise DataError(
            f"Standard input is not a list of token ids ({error}); give whole numbers between spaces."
        ) from error
    show(Tokenizer.load(tokenizer).decode(numbers))


def demo_spike(*, out: Path | None = None, seed: int = 0) -> None:
    """Poison some batches; train with rollback, only skipping, without detection.

    Args:
        out: folder of the first run and of spike.png; none = runs/spike-demo
        seed: seed of the initial weights, the order of the data and the poison
    """
    from npllm.runs.new_run import claim_run
    from npllm.training.spike_demo import run_demo

    with claim_run(out, "spike-demo") as path:
        run_demo(path, seed, TextConsole())


def chat(
    run: Positional[Path], *, max_tokens: int = 256, temperature: float = 0.8, top_p: float = 0.95, seed: int = 0
) -> None:
    """Talk with a model that npllm sft made; an empty line or Ctrl-D ends the talk.

    Args:
        run: folder of the run, or a checkpoint in it
        max_tokens: longest answer, in tokens; past block_size the start is forgotten
        temperature: 0 = always the likeliest token, 1 = as the model says
        top_p: choose among the fewest tokens that together have this probability
        seed: same seed and same questions, same answers
    """
    from npllm.finetuning.chat import chat as run_chat

    run_chat(run, max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)


def rlhf(*, task: str, out: Path | None = None, seeds: int = 1, overoptimise: bool = False) -> None:
    """Run the whole pipeline on one task, from pretraining to a report card.

    Args:
        task: paths (minutes), code (a quarter of an hour), or a Python file with a Task
        out: folder, new or of a pipeline that stopped; none = runs/rlhf-TASK
        seeds: runs of the pipeline with a seed each; the figures are means over them
        overoptimise: also fool reward models trained on few pairs; four times as long
    """
    from npllm.rlhf.report_card import run_and_report

    run_and_report(task, out, seeds, TextConsole(), overoptimise=overoptimise)


def completion(shell: Positional[Literal["bash", "zsh"]]) -> None:
    """Print a script that completes verbs and options in a shell.

    Args:
        shell: bash or zsh; source <(npllm completion bash) loads it
    """
    from npllm.help import completion_script

    functions = {name: _function_of(name, []) for name in (*STAGES, *VERBS)}
    options = {
        verb: [f"--{option.name}" for option in options_of(function) if not option.positional]
        for verb, function in functions.items()
    }
    print(completion_script(shell, options))


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
    "completion": completion,
}
# Their result is what they print. Any other verb goes on when nobody reads its output.
PRINTING = {"generate", "chat", "evaluate", "verify", "tokenizer encode", "tokenizer decode", "completion"}
LARGEST_INPUT = 1 << 26  # characters of standard input, which is read as a whole
GROUPS = {verb.split()[0] for verb in VERBS if " " in verb}  # first words of two-word verbs
READER_LEFT = 141  # what a shell reports of a program that SIGPIPE ended


def main(arguments: list[str] | None = None) -> int:
    """Run one verb. Returns the exit code: 0 done, 2 usage or config, 3 bad file, 4
    training gave up, 5 out of disk or memory, 130 interrupted, 141 the reader of the
    output has left. arguments: None = those of the process."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    words, flags = _without_flags(arguments)
    verb, rest = _verb_in(words)
    prints = verb in PRINTING or verb not in (*STAGES, *VERBS) or bool(flags & HELP)
    with guarded_streams(endures=not prints):
        try:
            with signals_interrupt(), warnings.catch_warnings():
                warnings.simplefilter("always", NpllmWarning)
                warnings.showwarning = functools.partial(_show_warning, warnings.showwarning)
                exit_code = _run(verb, rest, flags)
            sys.stdout.flush()
            return exit_code
        except BrokenPipeError:
            return READER_LEFT
        except (NpllmError, KeyboardInterrupt, MemoryError, OSError) as error:
            if "--debug" in flags:
                raise
            message, exit_code = _explain(error)
            print(f"npllm: {printable(message)}", file=sys.stderr)
            return exit_code


HELP = {"-h", "--help", "--help-all"}
FLAGS = HELP | {"--debug", "--version"}  # of npllm itself


def _without_flags(arguments: list[str]) -> tuple[list[str], set[str]]:
    """The arguments without npllm's own flags, and those flags. After a -- there are
    none."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    flags = FLAGS.intersection(arguments[:end])
    words = [argument for argument in arguments[:end] if argument not in flags]
    if words[:1] == ["help"]:
        words, flags = words[1:], flags | {"--help"}
    return words + arguments[end:], flags


def _verb_in(words: list[str]) -> tuple[str, list[str]]:
    """The verb, which may have two words, and its arguments."""
    n_words = 2 if words and words[0] in GROUPS else 1
    return " ".join(words[:n_words]), words[n_words:]


def _show_warning(otherwise: Callable[..., None], message: Warning, category: type[Warning], *place) -> None:
    if issubclass(category, NpllmWarning):
        print(f"npllm: {printable(str(message))}", file=sys.stderr)
    else:
        otherwise(message, category, *place)


def _explain(error: BaseException) -> tuple[str, int]:
    """An error as one sentence, and its exit code."""
    if isinstance(error, NpllmError):
        return str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    if isinstance(error, MemoryError):
        return "out of memory; lower batch.micro_size, model.block_size or model.n_embd.", 5
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{error.filename}: {error.strerror}; free some.", 5
    return f"{error.filename}: {error.strerror}; check the path.", 3


def _run(verb: str, arguments: list[str], flags: set[str]) -> int:
    """Run a verb, or print what a flag asks for. Returns the exit code."""
    if "--version" in flags and not verb:
        print(f"npllm {npllm.__version__}")
        return 0
    if not verb or verb in GROUPS:
        from npllm.help import overview

        summaries = {name: stage.summary for name, stage in STAGES.items()}
        print(overview(summaries | {name: inspect.getdoc(each).splitlines()[0] for name, each in VERBS.items()}))
        return 0 if flags & HELP else 2
    if verb not in (*STAGES, *VERBS):
        raise ConfigError(
            f"{verb!r} is not a verb of npllm{nearest(verb, [*STAGES, *VERBS])}; npllm --help lists them."
        )
    check_environment()  # before Numba is imported with the stage
    function, command = _function_of(verb, arguments), f"npllm {verb}"
    if flags & HELP:
        from npllm.help import verb_help

        first = load_stage(verb).first_options if verb in STAGES and "--help-all" not in flags else None
        print(verb_help(command, function, first))
        return 0
    # The verb is called after parsing has ended, so its output and errors are its own.
    parse_arguments(_deferred(function), arguments, prog=command)()
    return 0


def _function_of(verb: str, arguments: list[str]) -> Callable[..., None]:
    """The function of a verb. arguments: of the command line; they may name a recipe,
    which has the defaults."""
    if verb in VERBS:
        return VERBS[verb]
    stage = load_stage(verb)
    return _verb_of(stage, STAGES[verb].summary, stage.default_config(arguments))


def _deferred(function: Callable[..., None]) -> Callable[..., Callable[[], None]]:
    """A function with the same signature that only binds its arguments. It returns the
    call, which takes no arguments."""

    @functools.wraps(function)
    def bind(*args, **kwargs):
        return functools.partial(function, *args, **kwargs)

    bind.__signature__ = inspect.signature(function)
    return bind


def _verb_of(stage: "Stage", summary: str, config: Any) -> Callable[..., None]:
    """The function that makes and trains a run of a stage.

    Its parameters are the arguments of the stage's `inputs`, `out`, and the sections of
    the stage's config. The sections' defaults are those of `config`.
    """
    inputs = [p for p in inspect.signature(stage.inputs).parameters.values() if p.name not in ("config", "console")]
    sections = [p.replace(default=getattr(config, p.name)) for p in inspect.signature(type(config)).parameters.values()]
    out = inspect.Parameter("out", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Path | None)
    signature = inspect.Signature([*inputs, out, *sections])

    def verb(*args, **kwargs):
        from npllm.training.stage import start_run

        given = signature.bind(*args, **kwargs).arguments
        fields = {section.name: given[section.name] for section in sections}
        arguments = {parameter.name: given[parameter.name] for parameter in inputs}
        start_run(stage, type(config)(**fields), given["out"], TextConsole(), **arguments)

    verb.__signature__ = signature
    verb.__annotations__ = {parameter.name: parameter.annotation for parameter in signature.parameters.values()}
    described = inspect.cleandoc(stage.inputs.__doc__).split("Args:\n")[-1]
    verb.__doc__ = f"{summary}\n\nArgs:\n{described}\n    out: folder of the new run; none = a new one below runs/"
    return verb


def _standard_input() -> str:
    try:
        text = sys.stdin.read(LARGEST_INPUT + 1)
    except UnicodeDecodeError as error:
        raise DataError(f"Standard input is not UTF-8 ({error}); convert it to UTF-8.") from error
    if len(text) > LARGEST_INPUT:
        raise DataError(f"Standard input has more than {LARGEST_INPUT:,} characters; split it.")
    return text
