"""`python -m npllm.gradcheck FILE:FUNCTION`: is the backward that of the forward?"""

import sys
import textwrap

from npllm.errors import ConfigError, NpllmError
from npllm.gradcheck.arguments import Given, given
from npllm.gradcheck.check import Finding, Report, check, shapes_in_words
from npllm.gradcheck.pair import load_pair

HELP = """\
python -m npllm.gradcheck FILE:FUNCTION [--ARGUMENT WHAT ...] [--seed N]

Checks the gradients of a forward and backward of your own against central differences,
in float64. FILE is a Python file with the functions FUNCTION_forward and
FUNCTION_backward, which follow the conventions of npllm/reference:

    y, cache = FUNCTION_forward(x, weight)       # or only y
    dx = FUNCTION_backward(dy, cache, weight, dweight)

The gradients of inputs are returned, in their order. An argument with the name of an
input and a d before it, such as dweight, is an array to which its gradient is added.

Every input is a random array. WHAT sets one:

    --x 4,3            its shape
    --tokens 0..7:2,3  integers from 0 to 6, and the shape
    --n_head =2        a value: a number, text, None

The exit code is 0 if all gradients are right and 1 if one is wrong; 2 for bad options,
3 for a file that cannot be used.
"""
WIDTH = 80
WRONG = 1


def main(arguments: list[str]) -> int:
    """Check the pair that the arguments name, print a report, return the exit code."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return 0 if arguments else ConfigError.exit_code
    try:
        where, options, seed = parsed(arguments)
        pair = load_pair(where)
        report = check(pair, options, seed)
    except NpllmError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print_report(pair.name, report)
    return 0 if report.is_right else WRONG


def parsed(arguments: list[str]) -> tuple[str, dict[str, Given], int]:
    """Return FILE:FUNCTION, what is given for each argument, and the seed."""
    where, options, words = "", {}, iter(arguments)
    for word in words:
        if not word.startswith("--"):
            if where:
                raise ConfigError(f"{word!r} is one argument too many; give one FILE:FUNCTION, then options.")
            where = word
            continue
        name, equals, text = word.removeprefix("--").partition("=")
        if not equals and (text := next(words, None)) is None:
            raise ConfigError(f"{word} has no value; write a shape such as {word} 4,3.")
        options[name.replace("-", "_")] = text
    if not where:
        raise ConfigError("No function is named; write FILE:FUNCTION, such as layers.py:layernorm.")
    seed = options.pop("seed", "0")
    if not seed.isdecimal():
        raise ConfigError(f"The seed is {seed!r}; give an integer from 0 on.")
    return where, {name: given(name, text) for name, text in options.items()}, int(seed)


def print_report(name: str, report: Report) -> None:
    """Print the inputs, a line for each gradient, and what is wrong."""
    print(f"{name}: the backward against central differences, in float64")
    print(_wrapped(f"inputs: {shapes_in_words(report.inputs)}") + "\n")
    for finding in report.findings:
        print(_line(finding))
        if finding.mistake:
            print(_wrapped(finding.mistake))
    for problem in report.problems:
        print(_wrapped(problem))
    for each in report.unchecked:
        print(_wrapped(f"{each}: the backward gives no gradient, so none is checked."))
    wrong = sum(bool(finding.mistake) for finding in report.findings)
    if wrong:
        print(f"\n{wrong} of {len(report.findings)} gradients wrong.")
    elif report.is_right:
        print("\nAll gradients that are given are right." if report.unchecked else "\nAll gradients are right.")


def _line(finding: Finding) -> str:
    verdict = "WRONG" if finding.mistake else "right"
    if finding.where is None:
        return f"d{finding.name:<15} {verdict}"
    line = f"d{finding.name:<15} {verdict}   largest relative error {finding.error:.1e}"
    if finding.mistake:
        line += f"\n  at {list(finding.where)}: {finding.backward:.10g} by the backward, "
        line += f"{finding.differences:.10g} by differences"
    return line


def _wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent="  ", subsequent_indent="  ")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
