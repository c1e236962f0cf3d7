"""The verb of a stage: a function whose signature is its command line."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from npllm.output import TextConsole
from npllm.runs.run_folder import RunFolder
from npllm.training import stage


def verb_of(kind: stage.Stage, summary: str, config: Any, **options: Any) -> Callable[..., RunFolder]:
    """The function that makes and trains a run of one kind of stage.

    Its parameters are the arguments of the stage's `inputs`, `out`, and the sections of
    the stage's config. The sections' defaults are those of `config`. options: of
    `start_run`, whose console is standard output if there is none among them.
    """
    inputs = [p for p in inspect.signature(kind.inputs).parameters.values() if p.name not in ("config", "console")]
    sections = sections_with_defaults(config)
    out = inspect.Parameter("out", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Path | None)
    signature = inspect.Signature([*inputs, out, *sections])

    def verb(*args, **kwargs):
        given = signature.bind(*args, **kwargs).arguments
        fields = {section.name: given[section.name] for section in sections}
        arguments = {parameter.name: given[parameter.name] for parameter in inputs}
        of_call = {"console": TextConsole()} | options | arguments
        return stage.start_run(kind, type(config)(**fields), given["out"], **of_call)

    verb.__signature__ = signature
    verb.__annotations__ = {parameter.name: parameter.annotation for parameter in signature.parameters.values()}
    described = inspect.cleandoc(kind.inputs.__doc__).split("Args:\n")[-1]
    verb.__doc__ = f"{summary}\n\nArgs:\n{described}\n    out: folder of the new run; none = a new one below runs/"
    return verb


def sections_with_defaults(config: Any) -> list[inspect.Parameter]:
    """The sections of a config as parameters, with its values as their defaults."""
    return [p.replace(default=getattr(config, p.name)) for p in inspect.signature(type(config)).parameters.values()]
