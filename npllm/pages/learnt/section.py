"""What the model of a run has learnt, as the values of the page's template."""

import re
from typing import Any, NamedTuple

import numpy as np

from npllm.data.records import read_demonstrations
from npllm.data.shards import read_shard
from npllm.data.topics import stdlib_topics
from npllm.errors import DataError
from npllm.finetuning.sft import encode
from npllm.pages.learnt.heads import KINDS, NAMED, HeadScores, distance, name_of
from npllm.pages.learnt.inside import random_twin
from npllm.pages.learnt.measure import Measures, measure
from npllm.pages.learnt.neurons import TOP, Neuron
from npllm.pages.learnt.topics import Topics, encode_topics
from npllm.pages.learnt.windows import HeldOut, Windows, of_sequences, of_shard
from npllm.pages.scatter import scatter
from npllm.runs.config_file import sources_of
from npllm.runs.inputs import checked_records
from npllm.runs.run_folder import RunFolder, load
from npllm.tokenizer import Tokenizer

STAGES = ("pretrain", "sft")  # whose models are looked into
ON_THE_MAP = 120  # tokens
BYTE_VALUES = 256


class Kind(NamedTuple):
    """One kind of head. best: the highest score of the trained model and its place.
    random: the highest score of random weights. threshold: score from which a head is
    named so. found: whether one is."""

    name: str
    wanted: str
    best: float
    layer: int
    head: int
    random: float
    chance: float
    threshold: float
    queries: int
    found: bool


class Example(NamedTuple):
    """A neuron and where it is highest: (text before, token, text after, value)."""

    neuron: Neuron
    snippets: list[tuple[str, str, str, float]]


def learnt_section(run: RunFolder) -> dict[str, Any]:
    """The values of the template for the newest model of a run. Raises DataError where
    there is too little text, or weights that are not finite."""
    model, tokenizer = load(run.path)
    if not np.isfinite(model.params.flat).all():
        raise DataError(f"The newest weights of {run.path.name} are not finite; nothing can be measured in them.")
    windows = Windows(_text(run, tokenizer), tokenizer, model.config)
    topics = _topics(run, tokenizer, windows.x.shape[1])
    trained, random = (measure(each, windows, topics, model.seed) for each in (model, random_twin(model)))
    return {
        "n_windows": len(windows.x),
        "length": windows.x.shape[1],
        "trained": trained,
        "random": random,
        "tied": model.config.tie_embeddings,
        "uniform": float(np.log(model.config.vocab_size)),
        "kinds": kinds(trained.heads, random.heads),
        "head_names": head_names(trained.heads),
        "named_from": NAMED,
        "neighbours": [_neighbours(each, windows) for each in trained.embeddings.nearest],
        "maps": [
            _map(each, windows, name) for name, each in (("the trained model", trained), ("random weights", random))
        ],
        "examples": [_example(neuron, windows) for neuron in trained.neurons],
        "top": TOP,
        "missing": missing(trained),
    }


def kinds(trained: dict[str, HeadScores], random: dict[str, HeadScores]) -> list[Kind]:
    """The kinds of heads that could be measured, each with its best head."""
    found = []
    for name, (scores, chance, queries) in trained.items():
        if queries:
            layer, head = np.unravel_index(scores.argmax(), scores.shape)
            best, threshold = float(scores[layer, head]), chance + NAMED * (1.0 - chance)
            measured = (best, layer, head, random[name].scores.max(), chance, threshold, queries)
            found.append(Kind(name, KINDS[name], *measured, distance(best, chance) >= NAMED))
    return found


def head_names(scores: dict[str, HeadScores]) -> list[list[tuple[str | None, float]]]:
    """The kind of each head and its score there, by layer; None = no kind."""
    n_layer, n_head = next(iter(scores.values())).scores.shape
    names = [[name_of(scores, layer, head) for head in range(n_head)] for layer in range(n_layer)]
    return [
        [(name, float(scores[name].scores[layer, head]) if name else np.nan) for head, name in enumerate(row)]
        for layer, row in enumerate(names)
    ]


def missing(measures: Measures) -> list[str]:
    """Sentences about what could not be measured, and why."""
    probes = {probe.name for probe in measures.probes}
    reasons = {
        "inside a string or comment": "the held-out text holds too little Python that can be parsed",
        "indentation of the line": "the lines of the held-out text hardly differ in it",
        "package of the snippet": "the run did not train on Python's standard library",
    }
    left_out = [f"No probe for “{name}”: {reason}." for name, reason in reasons.items() if name not in probes]
    unseen = [name for name, each in measures.heads.items() if not each.queries]
    return left_out + [f"No score for “{name}”: the held-out text has no such tokens." for name in unseen]


def _text(run: RunFolder, tokenizer: Tokenizer) -> HeldOut:
    """The text that the run held out: validation tokens, or demonstrations."""
    if run.val_shard.exists():
        text = of_shard(read_shard(run.val_shard))
    else:
        records = read_demonstrations(checked_records(run, "val"))
        text = of_sequences([example.tokens for example in encode(records, tokenizer)])
    if len(text.tokens) < 2:
        raise DataError(f"{run.path.name} holds out less than two tokens; nothing can be measured on them.")
    return text


def _topics(run: RunFolder, tokenizer: Tokenizer, most: int) -> Topics | None:
    """The snippets of the standard library, for a run that can read them: one that was
    trained on it, or a later stage with a vocabulary of all bytes."""
    sources = sources_of(run.config)
    if "stdlib" not in sources and (sources or tokenizer.vocab_size < BYTE_VALUES or tokenizer.kind == "char"):
        return None
    try:
        return encode_topics(stdlib_topics(), tokenizer, most)
    except DataError:  # a vocabulary of characters lacks some
        return None


def _neighbours(each, windows: Windows) -> tuple[str, list[tuple[str, float]]]:
    return _name(windows, each.token), [(_name(windows, other), cosine) for other, cosine in each.others]


def _name(windows: Windows, token: int) -> str:
    """A token as text that shows its white space; of many spaces, their number."""
    text = windows.pieces[token].decode("utf-8", errors="backslashreplace")
    text = re.sub(" {3,}", lambda found: f"␣×{len(found[0])}", text)
    return text.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥")


def _map(measures: Measures, windows: Windows, name: str) -> tuple[str, Any, np.ndarray]:
    of = measures.embeddings
    names = [_name(windows, token) for token in of.tokens[:ON_THE_MAP]]
    label = f"Map of token embeddings, {name}"
    return name, scatter(of.places[:ON_THE_MAP], names, of.classes[:ON_THE_MAP], label), of.explained


def _example(neuron: Neuron, windows: Windows, shown: int = 5) -> Example:
    places = zip(neuron.rows[:shown], neuron.values[:shown], strict=True)
    return Example(neuron, [(*windows.snippet(row), value) for row, value in places])
