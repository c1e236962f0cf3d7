"""`npllm evaluate --task minimal-pairs`: does a model prefer right code to wrong code?

The model prefers the function of a pair that has the higher log-probability. It is the
sum over all tokens of the function, the first of which follows the end-of-text token:

    log P(function) = sum over t of log P(token t | end-of-text, token 0 ... token t-1)

Accuracy is the share of pairs in which the right function is preferred; a tie counts
half. Source: Warstadt et al., "BLiMP", 2020, section 4.
"""

from collections.abc import Iterable, Iterator, Sequence
from math import sqrt
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console

from npllm.data.corpora import load_corpus
from npllm.data.minimal_pairs import PHENOMENA, MinimalPair, minimal_pairs, short_functions
from npllm.data.prompt_format import PromptFormat
from npllm.data.shards import read_shard
from npllm.errors import DataError
from npllm.generation import check_writes
from npllm.generation.likelihood import log_likelihoods
from npllm.interop.lm_eval_tasks import write_tasks
from npllm.model import GPT
from npllm.output import tracked
from npllm.runs.config_file import sources_of
from npllm.runs.inputs import model_file
from npllm.runs.run_folder import RunFolder, load, run_of
from npllm.tokenizer import Tokenizer
from npllm.training.pretrain import START
from npllm.training.stage import Figures

PAIRS_AT_ONCE = 64  # between two signs of progress


class Judgement(NamedTuple):
    """A pair, and the log-probabilities of its right and of its wrong function."""

    pair: MinimalPair
    right: float
    wrong: float

    @property
    def score(self) -> float:
        """1 where the right function is preferred, 0 where the wrong one is."""
        return float(np.sign(self.right - self.wrong) + 1) / 2


def evaluate_minimal_pairs(path: Path, out: Path | None, console: Console) -> Figures:
    """The accuracy of a run or a checkpoint in each phenomenon, with its standard
    error.

    out: folder that the pairs are written into, as in `write_tasks`; None = do not
    write. Raises ConfigError for a model that judges texts, and DataError where no pair
    can be made.
    """
    model, tokenizer = load(path)
    check_writes(model, path)
    with console.status("making pairs"):
        pairs, origin = pairs_for(run_of(path), model, tokenizer)
    if out is not None:
        write_tasks(pairs, out)
    judged = judge(model, tokenizer, pairs, console)
    return [*accuracies(judged), ("text", origin)]


def pairs_for(run: RunFolder, model: GPT, tokenizer: Tokenizer) -> tuple[list[MinimalPair], str]:
    """The pairs for the model of a run, and a sentence about their text.

    The functions are from what a run on the standard library held out, else from what
    it holds out by default. A function that stands in training text, too, is left out.
    """
    if run.config.exists() and "stdlib" in sources_of(run.config):
        held_out, known = (documents_of(shard, tokenizer) for shard in (run.val_shard, run.train_shard))
        of, seen = "held-out text of the run", model_file(run, START).exists()
    else:
        corpus = load_corpus("stdlib")
        held_out, known = ((document.text for document in side) for side in (corpus.val, corpus.train))
        of, seen = "text that a run on the standard library holds out", True
    functions = short_functions(held_out, known)
    pairs = minimal_pairs(functions, tokenizer, model.config.block_size)
    if not pairs:
        raise DataError(
            f"{run.path}: no pair fits this model (block_size {model.config.block_size}); take a model that sees more, "
            "or one with a tokenizer for code."
        )
    remark = "; training may have included it" if seen else ""
    return pairs, f"{len(functions):,} functions of the {of}{remark}"


def documents_of(shard: Path, tokenizer: Tokenizer) -> Iterator[str]:
    """The texts of the documents in a shard."""
    content = read_shard(shard)
    for tokens in np.split(content.tokens, content.document_starts[1:]):
        yield tokenizer.decode(tokens if content.eot_id is None else tokens[tokens != content.eot_id])


def judge(
    model: GPT, tokenizer: Tokenizer, pairs: Sequence[MinimalPair], console: Console | None = None
) -> list[Judgement]:
    """The log-probabilities of the functions of each pair."""
    start = PromptFormat(tokenizer).document_start()
    parts = [pairs[first : first + PAIRS_AT_ONCE] for first in range(0, len(pairs), PAIRS_AT_ONCE)]
    judged: list[Judgement] = []
    for part in tracked(parts, len(parts), "evaluating", console):
        found = log_likelihoods(
            model, [(start, tokenizer.encode(text)) for pair in part for text in (pair.right, pair.wrong)]
        )
        values = [each.log_probability for each in found]
        judged += map(Judgement, part, values[::2], values[1::2])
    return judged


def accuracies(judged: Iterable[Judgement]) -> Figures:
    """Accuracy and standard error of each phenomenon and of all pairs, and what a model
    without knowledge would have."""
    scores = {name: [each.score for each in judged if each.pair.phenomenon == name] for name in PHENOMENA}
    rows = {name: values for name, values in scores.items() if values}
    rows["all"] = [value for values in scores.values() for value in values]
    shorter = np.mean([0.5 + np.sign(len(each.pair.wrong) - len(each.pair.right)) / 2 for each in judged])
    return [
        *((name, in_words(values)) for name, values in rows.items()),
        ("chance", f"50 %; the shorter function is the right one in {shorter:.1%}; each pair has equal tokens"),
    ]


def in_words(scores: Sequence[float]) -> str:
    """An accuracy with its standard error, sqrt(p (1 - p) / n), and n."""
    p, n = float(np.mean(scores)), len(scores)
    return f"{p:.1%} ± {sqrt(p * (1 - p) / n):.1%} of {n:,} pairs"
