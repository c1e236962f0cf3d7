"""Put the gradients on trial: plant mistakes in every backward, and run its tests.

    python tools/mutate.py [--jobs 2]                   all mutants
    python tools/mutate.py --sample 20 --seed 1         some of them
    python tools/mutate.py --only npllm/model/lora.py
    python tools/mutate.py --list                       show them; run nothing

Each mutant is one function with one mistake (`mutation/mistakes.py` names the kinds).
`mutation/mutants.py` lists the functions, and the tests that judge each file.
`mutation/trial.py` tells how a mutant is run. A mutant is killed when a test fails,
when its process crashes, or when it takes many times as long as the right code.

Prints the share of the mutants that are killed, and each survivor with its difference
from the code. Some mutants compute the same gradient; `mutation/equivalent.py` argues
why, one by one. The exit code is 1 if another mutant survives, or if an entry of that
table matches no mutant, or one that is killed.
"""

import argparse
import random
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tools")]

from mutation.equivalent import EQUIVALENT  # noqa: E402
from mutation.mutants import TARGETS, Mutant, all_mutants, not_on_trial  # noqa: E402


def main() -> int:
    options = parsed()
    mutants = all_mutants(ROOT, TARGETS)
    problems = [f"{name} is not on trial; add it to tools/mutation/mutants.py." for name in not_on_trial(ROOT)]
    problems += unknown_entries(mutants)
    chosen = chosen_mutants(mutants, options)
    if not chosen:
        print("No mutant fits these options; --list shows all mutants.", file=sys.stderr)
        return 2
    if options.list:
        for mutant in chosen:
            print(f"{mutant.number:>5}  {mutant.target.file}:{mutant.line}  {mutant.function}  {mutant.kind}")
            print(f"       {mutant.before}\n       {mutant.after}")
    else:
        problems += trial(chosen, options.jobs)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--sample", type=int, metavar="N", help="run N random mutants")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default: 0)")
    parser.add_argument("--only", metavar="FILE", help="the mutants of this file")
    parser.add_argument("--number", type=int, nargs="+", metavar="N", help="the mutants with these numbers")
    parser.add_argument("--list", action="store_true", help="show the mutants; run nothing")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time (default: 2)")
    options = parser.parse_args()
    if options.jobs < 1:
        parser.error(f"--jobs is {options.jobs}; give at least 1.")
    return options


def chosen_mutants(mutants: list[Mutant], options: argparse.Namespace) -> list[Mutant]:
    """Return the mutants that the options ask for, in the order of their numbers."""
    if options.only:
        file = options.only.removeprefix("./")
        mutants = [mutant for mutant in mutants if mutant.target.file == file]
    if options.number:
        mutants = [mutant for mutant in mutants if mutant.number in options.number]
    if options.sample is not None and options.sample < len(mutants):
        mutants = sorted(random.Random(options.seed).sample(mutants, options.sample))
    return mutants


def unknown_entries(mutants: list[Mutant]) -> list[str]:
    """Return a sentence for each entry of the table that matches no mutant."""
    keys = {mutant.key for mutant in mutants}
    return [
        f"tools/mutation/equivalent.py argues about a mutant that does not exist: {file}, {function}, {before!r} -> "
        f"{after!r}; remove it, or write its lines as --list shows them."
        for file, function, before, after in EQUIVALENT
        if (file, function, before, after) not in keys
    ]


def trial(mutants: list[Mutant], jobs: int) -> list[str]:
    """Run the mutants, print the report, and return what is wrong."""
    from mutation.trial import verdicts  # imports Numba and pytest

    start, by_number = time.monotonic(), {mutant.number: mutant for mutant in mutants}
    tried, seconds, survivors = Counter(), Counter(), []
    for verdict in verdicts(ROOT, mutants, jobs):
        if verdict.number:
            tried[verdict.file] += 1
            seconds[verdict.file] += verdict.seconds
            if verdict.survived:
                survivors.append(by_number[verdict.number])
        elif not verdict.survived:
            return [f"The tests of {verdict.file} fail without a mutation; mend them first.\n{verdict.output}"]
        if sys.stderr.isatty():
            print(f"\r{tried.total()} of {len(mutants)} mutants tried ", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    print_report(sorted(survivors), tried, seconds)
    return verdict_on(mutants, sorted(survivors), (time.monotonic() - start) / 60)


def print_report(survivors: list[Mutant], tried: Counter, seconds: Counter) -> None:
    """Print a line for each file, and each survivor."""
    alive, argued = (
        Counter(mutant.target.file for mutant in survivors if (mutant.key in EQUIVALENT) == known)
        for known in (False, True)
    )
    print(f"{'file':<36}{'mutants':>8}{'killed':>8}{'equivalent':>12}{'survived':>10}{'CPU s':>8}")
    for file, count in tried.items():
        killed = count - alive[file] - argued[file]
        print(f"{file:<36}{count:>8}{killed:>8}{argued[file]:>12}{alive[file]:>10}{seconds[file]:>8.0f}")
    for mutant in survivors:
        print(f"\nmutant {mutant.number}, {mutant.kind}, in {mutant.function}:\n{mutant.diff(ROOT)}", end="")
        if mutant.key in EQUIVALENT:
            print(f"Equivalent: {EQUIVALENT[mutant.key]}")


def verdict_on(mutants: list[Mutant], survivors: list[Mutant], minutes: float) -> list[str]:
    """Print the last line, and return what is wrong."""
    alive = [mutant for mutant in survivors if mutant.key not in EQUIVALENT]
    equivalent, killed = len(survivors) - len(alive), len(mutants) - len(survivors)
    share = killed / (killed + len(alive)) if killed + len(alive) else 1.0
    print(
        f"\n{len(mutants)} mutants: {killed} killed, {equivalent} equivalent, {len(alive)} survived. The tests kill "
        f"{share:.1%} of the mutants that are not equivalent ({minutes:.1f} minutes)."
    )
    problems = [f"Mutant {m.number} survives: {m.target.file}:{m.line}; write the test that kills it." for m in alive]
    survived = {mutant.key for mutant in survivors}
    refuted = dict.fromkeys(m.key for m in mutants if m.key in EQUIVALENT and m.key not in survived)
    return problems + [
        f"tools/mutation/equivalent.py calls a mutant equivalent that the tests kill: {file}, {function}, {after!r}; "
        "remove it."
        for file, function, _, after in refuted
    ]


if __name__ == "__main__":
    sys.exit(main())
