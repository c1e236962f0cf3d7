"""Mutants that compute the same gradient, each with the argument why.

Key: file, function, and the source lines before and after, as `--list` shows them. An
entry that matches no mutant is an error of the trial, and so is one that is killed.
"""

EQUIVALENT: dict[tuple[str, str, str, str], str] = {}
