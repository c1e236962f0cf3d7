"""The stages as Python functions: npllm.pretrain, npllm.sft and the others.

A call is turned into the words of a command line, so the same code parses and checks
it. Python has the arguments, the defaults and the messages of `npllm VERB`.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from os import PathLike, fspath
from typing import Any

import numpy as np

from npllm.errors import ConfigError
from npllm.output import TextConsole
from npllm.runs.arguments import Option, deferred, options_of, parse_arguments
from npllm.runs.config_file import arguments_of
from npllm.runs.run_folder import RunFolder, open_run
from npllm.training.environment import check_environment
from npllm.training.extend import extend_run
from npllm.training.run import Run
from npllm.training.stage import train_run
from npllm.training.stage_verb import verb_of
from npllm.training.stages import STAGES, load_stage, stage_in
from npllm.training.train import OnRecord

Callback = OnRecord | None
AnyPath = str | PathLike
OF_EVERY_STAGE = """
    on_step, on_evaluation, quiet: as in npllm.pretrain
    {sections}: dicts of the fields
        that `npllm {name} --help-all` lists

Returns the `Run`. Raises what npllm.pretrain raises."""


def pretrain(
    source: AnyPath | Sequence[AnyPath] | None = None,
    *,
    out: AnyPath | None = None,
    recipe: AnyPath = "default",
    minutes: float | None = None,
    start: AnyPath | None = None,
    on_step: Callback = None,
    on_evaluation: Callback = None,
    quiet: bool = False,
    **sections: Mapping[str, Any],
) -> Run:
    """Train a language model from scratch, like `npllm pretrain`.

        run = npllm.pretrain("notes/", minutes=3, model={"n_layer": 2})

    Args:
        source: the text: files, folders and glob patterns; none = that of the recipe,
            usually the source code of Python's standard library
        out: folder of the new run; none = a new one below runs/
        recipe: default, half-hour, classic, shakespeare-char, or a TOML file
        minutes: time budget of the loop, in place of train.steps and train.minutes
        start: run, or checkpoint in it, with the weights and the tokenizer to start
            from; none = random weights
        on_step: called after each update with its line of metrics.jsonl, a dict with
            step, loss, grad_norm, lr, tokens and others. What it raises ends the
            training: the run stays as its newest checkpoint has it, and npllm.resume
            continues it
        on_evaluation: called in the same way, only with lines that have a val_loss
        quiet: print nothing
        sections: data, model, optim, batch, train, spikes: dicts of the fields that
            `npllm pretrain --help-all` lists; the other fields are the recipe's

    Returns the `Run`. Raises ConfigError for a field or value that does not exist,
    DataError for a text that cannot be used, ResourceError where memory or disk are too
    small, and Interrupted after Ctrl-C or a notebook's stop, with the state saved.
    """
    data = sections.get("data", {})
    if source is not None and isinstance(data, Mapping) and "source" in data:
        raise ConfigError("The source is given twice, alone and in data; leave out one of them.")
    given = {"out": out, "recipe": recipe, "minutes": minutes, "from": start, "data.source": source, **sections}
    return _train("pretrain", given, on_step, on_evaluation, quiet)


def resume(run: AnyPath, *, on_step: Callback = None, on_evaluation: Callback = None, quiet: bool = False) -> Run:
    """Continue a run of any stage exactly where it stopped, however it stopped.

    run: its folder. The rest is as in `pretrain`. The updates after the newest
    checkpoint are made again, with the same bits.
    """
    check_environment()
    folder = open_run(run)
    train_run(folder, TextConsole(quiet=quiet), stage_in(folder.config), _listener(on_step, on_evaluation))
    return Run(folder.path)


def extend(
    run: AnyPath,
    minutes: float = 3.0,
    *,
    on_step: Callback = None,
    on_evaluation: Callback = None,
    quiet: bool = False,
) -> Run:
    """Train a finished run of any stage further, with a warm-up and a decay of its own.

    run: its folder. minutes: time budget of the updates that are added. The rest is as
    in `pretrain`. Raises ConfigError for a run that is not finished.
    """
    check_environment()
    folder = open_run(run)
    extend_run(folder, minutes, TextConsole(quiet=quiet), _listener(on_step, on_evaluation))
    return Run(folder.path)


def __getattr__(name: str) -> Callable[..., Run]:
    """The function of a stage that starts from a run: sft, classify and so on."""
    if name not in STAGES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _function_of(name)


@functools.cache
def _function_of(name: str) -> Callable[..., Run]:
    verb = _verb(name, load_stage(name).config_type())

    def function(
        run: AnyPath | None = None,
        *,
        on_step: Callback = None,
        on_evaluation: Callback = None,
        quiet: bool = False,
        **given: Any,
    ) -> Run:
        return _train(name, {"run": run, **given}, on_step, on_evaluation, quiet)

    # The parameters of the verb, with dicts as sections, and those of `resume`.
    parameters = {parameter.name: parameter for parameter in inspect.signature(verb).parameters.values()}
    sections = [each for each, parameter in parameters.items() if is_dataclass(parameter.annotation)]
    for each in sections:
        parameters[each] = parameters[each].replace(annotation=Mapping[str, Any], default={})
    parameters["run"] = parameters["run"].replace(annotation=AnyPath)
    parameters |= dict(list(inspect.signature(resume).parameters.items())[1:])
    function.__signature__ = inspect.Signature(list(parameters.values()), return_annotation=Run)
    function.__name__ = function.__qualname__ = name
    function.__doc__ = verb.__doc__ + OF_EVERY_STAGE.format(sections=", ".join(sections), name=name)
    return function


def _train(name: str, given: Mapping[str, Any], on_step: Callback, on_evaluation: Callback, quiet: bool) -> Run:
    """Make a run of a stage and train it.

    given: the arguments of its verb by name, with dicts in place of the sections; None
    = not given.
    """
    check_environment()
    stage = load_stage(name)
    words = _words(given, options_of(_verb(name, stage.config_type())))
    options = {"console": TextConsole(quiet=quiet), "on_record": _listener(on_step, on_evaluation)}
    verb = _verb(name, stage.default_config(words), **options)
    return Run(parse_arguments(deferred(verb), words, prog=f"npllm {name}")().path)


def _verb(name: str, config: Any, **options: Any) -> Callable[..., RunFolder]:
    return verb_of(load_stage(name), STAGES[name].summary, config, **options)


def _words(given: Mapping[str, Any], options: list[Option]) -> list[str]:
    """The command-line arguments that mean the same as arguments of a call."""
    values = {name: _as_in_toml(value) for name, value in given.items() if value is not None}
    sections = {option.name.partition(".")[0] for option in options if "." in option.name}
    for name in sections & values.keys():
        if not isinstance(values[name], Mapping):
            raise ConfigError(f"{name} is {values[name]!r:.80}; give a dict of its fields.")
    positional = [str(values.pop(option.name)) for option in options if option.positional and option.name in values]
    return [*arguments_of(values, options), "--", *positional]


def _as_in_toml(value: Any) -> Any:
    """A value of Python as a TOML file holds it."""
    if isinstance(value, Mapping):
        return {name: _as_in_toml(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_as_in_toml(part) for part in value]
    if isinstance(value, PathLike):
        return fspath(value)
    if isinstance(value, np.generic):
        return value.item()
    return "none" if value is None else value


def _listener(on_step: Callback, on_evaluation: Callback) -> OnRecord:
    def listen(record: dict[str, Any]) -> None:
        if on_step is not None:
            on_step(record.copy())
        if on_evaluation is not None and "val_loss" in record:
            on_evaluation(record.copy())

    return listen
