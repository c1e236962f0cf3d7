"""The command line: from arguments to a verb, and from errors to exit codes.

The verbs are the stages, each of which makes and trains a run, and those of `verbs.py`,
`tokenizer_verbs.py`, `pages/verbs.py` and `serve/verbs.py`. `npllm VERB --help` shows
the options of a verb with their defaults and units.
"""

import errno
import functools
import inspect
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Literal

from tyro.conf import Positional

import npllm
from npllm.distributed import EndedElsewhere, is_launched, joined, promised_rank, world
from npllm.distributed.launch import check_alike, this_machine_takes_part
from npllm.errors import ConfigError, NpllmError, NpllmWarning
from npllm.files.unwritable import unwritable
from npllm.output import READER_LEFT, guarded_streams, one_line
from npllm.pages.verbs import PAGE_VERBS
from npllm.planning import verb as planning
from npllm.runs.arguments import deferred, nearest, options_of, parse_arguments
from npllm.serve.verbs import SERVE_VERBS
from npllm.tokenizer_verbs import TOKENIZER_VERBS
from npllm.training.environment import check_environment
from npllm.training.interrupts import signals_interrupt
from npllm.training.stages import STAGES, load_stage
from npllm.verbs import OTHER_VERBS


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


OWN_VERBS = {"plan": planning.plan, "completion": completion}
VERBS = OTHER_VERBS | TOKENIZER_VERBS | PAGE_VERBS | SERVE_VERBS | OWN_VERBS
# Their result is what they print. Any other verb goes on when nobody reads its output.
PRINTING = {"generate", "chat", "evaluate", "predict", "score", "verify", "runs"}
PRINTING |= {"tokenizer encode", "tokenizer decode", "plan", "completion"}
HELP = {"-h", "--help", "--help-all"}
FLAGS = HELP | {"--debug", "--version"}  # of npllm itself
GROUPS = {verb.split()[0] for verb in VERBS if " " in verb}  # first words of two-word verbs


def main(arguments: list[str] | None = None) -> int:
    """Run one verb. Returns the exit code: 0 done, 2 usage or config, 3 bad file, 4
    training gave up, 5 out of disk or memory, 130 interrupted, 141 the reader of the
    output has left. arguments: None = those of the process."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    words, flags = _without_flags(arguments)
    verb, rest = _verb_in(words)
    prints = verb in PRINTING or verb not in (*STAGES, *VERBS) or bool(flags - {"--debug"})
    with guarded_streams(endures=not prints, silent=promised_rank() > 0):
        try:
            with signals_interrupt(), warnings.catch_warnings():
                warnings.simplefilter("always", NpllmWarning)
                warnings.showwarning = functools.partial(_show_warning, warnings.showwarning)
                exit_code = _run(verb, rest, flags)
            sys.stdout.flush()
            end_job(exit_code)
            return exit_code
        except EndedElsewhere as ended:
            return ended.exit_code
        except BrokenPipeError:
            return READER_LEFT
        except (NpllmError, KeyboardInterrupt, MemoryError, OSError) as error:
            if "--debug" in flags:
                raise
            lines, exit_code = explain(error)
            say("\n  ".join(map(one_line, lines)))
            end_job(exit_code)
            return exit_code
        except Exception:
            if joined().size > 1:  # the other ranks would wait for this one
                traceback.print_exc()
                joined().abort(1)
            raise


def say(message: str) -> None:
    """Print a message to standard error. Before the ranks of a job have joined, all
    have the same to say, and rank 0 says it."""
    if rank := joined().rank:
        message = f"rank {rank}: {message}"
    elif promised_rank():
        return
    print(f"npllm: {message}", file=sys.stderr)


def end_job(exit_code: int) -> None:
    """Let the other ranks of a job end, if there are any. A rank that is not the first
    waits until rank 0 has nothing more to do, or ends the job if it has failed."""
    if joined().rank == 0 or exit_code:
        joined().end(exit_code)
    else:
        joined().share(None)  # which raises EndedElsewhere


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
        if not promised_rank():
            print(f"npllm: {one_line(str(message))}", file=sys.stderr)
    else:
        otherwise(message, category, *place)


def explain(error: BaseException) -> tuple[list[str], int]:
    """An error as one sentence, which the lines of a listing may follow, and its exit
    code."""
    if isinstance(error, NpllmError):
        return [error.message, *error.listing], error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return ["interrupted"], 130
    if isinstance(error, MemoryError):
        return ["out of memory; lower batch.micro_size, model.block_size or model.n_embd."], 5
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return [str(unwritable(error.filename, error))], 5
    return [f"{error.filename}: {error.strerror}; check the path."], 3


def _run(verb: str, arguments: list[str], flags: set[str]) -> int:
    """Run a verb, or print what a flag asks for. Returns the exit code."""
    if "--version" in flags:
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
    with this_machine_takes_part():
        check_environment()  # before Numba is imported with the stage
    if is_launched():
        join(verb)
    function, command = _function_of(verb, arguments), f"npllm {verb}"
    if flags & HELP:
        from npllm.help import verb_help

        print(verb_help(command, function, None if "--help-all" in flags else _first_options(verb)))
        return 0
    # The verb is called after parsing has ended, so its output and errors are its own.
    joined().agree(lambda: parse_arguments(deferred(function), arguments, prog=command))()
    return 0


def join(verb: str) -> None:
    """Join the ranks of a job that mpiexec has started. Raises ConfigError for a verb
    that does not train, and where the ranks differ."""
    if verb not in (*STAGES, "resume", "extend"):
        raise ConfigError(f"npllm {verb} does not train, so it runs in one process; start it without mpiexec.")
    from npllm.training.machine import describe_machine

    check_alike(world(), describe_machine(verb) | {"command": " ".join(sys.argv[1:])})


def _function_of(verb: str, arguments: list[str]) -> Callable[..., None]:
    """The function of a verb. arguments: of the command line; they may name a recipe,
    which has the defaults."""
    if verb == "plan":
        return planning.plan_of(arguments)
    if verb in VERBS:
        return VERBS[verb]
    from npllm.training.stage_verb import verb_of

    stage = load_stage(verb)
    return verb_of(stage, STAGES[verb].summary, stage.default_config(arguments))


def _first_options(verb: str) -> Sequence[str] | None:
    """The fields of a config that --help shows; None = there is no config, and it shows
    all options."""
    if verb == "plan":
        return planning.FIRST_OPTIONS
    return load_stage(verb).first_options if verb in STAGES else None
