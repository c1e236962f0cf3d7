"""`benchmarks parity`, another part: does lm_eval find what npllm finds?

A model with weights of order one is asked through `NpllmLM` and, exported, through the
harness's own object for transformers. Both must give the accuracy of `npllm evaluate
--task minimal-pairs`, the same log-probabilities, and the same likeliest texts.
"""

import inspect
import json.decoder
import shlex
import tempfile
import textwrap
from pathlib import Path

import numpy as np

import npllm
from benchmarks import parity
from benchmarks.peers.process import PeerAbsent
from benchmarks.race import Contender
from benchmarks.tables import Row
from npllm.data.minimal_pairs import minimal_pairs, short_functions
from npllm.interop import huggingface
from npllm.interop.harness import Answers
from npllm.interop.lm_eval_tasks import GROUP, write_tasks
from npllm.model import GPT, ModelConfig
from npllm.tokenizer import Tokenizer
from npllm.training.evaluate_task import judge

READER = Contender("lm_eval", "lm_eval_worker", {}, environment={"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"})
ASKED = ("npllm", "transformers")  # the model objects of the harness
SIZES = {"n_layer": 2, "n_head": 4, "n_embd": 64, "block_size": 128}
VOCAB_SIZE = 600
MODULES = (json.decoder, shlex, textwrap)
TOLERANCE = 1e-3  # of a log-probability, in nats; the largest are sums of 1,000 tokens
SETTINGS = {"do_sample": False, "max_gen_toks": 12, "until": ["\n\n"]}


def measure() -> list[Row]:
    """Return a row for each model object of the harness."""
    sources = list(map(inspect.getsource, MODULES))
    tokenizer = npllm.train_bpe(sources, VOCAB_SIZE)
    model = GPT(ModelConfig(**SIZES, **parity.LLAMA, vocab_size=VOCAB_SIZE))
    parity.fill(model)
    with tempfile.TemporaryDirectory() as folder:
        found = compared(model, tokenizer, sources, Path(folder))
    return [{"reader": READER.name, "family": f"object for {name}", **row} for name, row in found.items()]


def compared(model: GPT, tokenizer: Tokenizer, sources: list[str], folder: Path) -> dict[str, Row]:
    """Return what the harness finds, compared with what we do, by model object."""
    npllm.save(model, tokenizer, folder / "ours")
    huggingface.save(model, tokenizer, folder / "exported")
    pairs = minimal_pairs(short_functions(sources), tokenizer, model.config.block_size)
    write_tasks(pairs, folder / "tasks")
    long, short = sources[0], sources[1][:200]
    questions = {
        "pairs": [
            ("", short[:50]),
            (short, " and"),
            (short.rstrip() + " \n", "x = 1\n"),
            (long, long[:60]),
            ("de", "f f"),
        ],
        "texts": [short, long[:3000], "x"],
        "prompts": [(short[:100], SETTINGS), (long, SETTINGS), (long, {"max_gen_toks": 20})],
    }
    reader = READER._replace(environment=READER.environment | {"HF_HOME": str(folder / "cache")})
    paths = {"run": str(folder / "ours"), "folder": str(folder / "exported"), "tasks": str(folder / "tasks")}
    try:
        with reader.start() as worker:
            theirs = worker.set_up("ask", **paths, group=GROUP, **questions)
    except PeerAbsent as error:
        return {name: {"failure": str(error)} for name in ASKED}
    answers = Answers(model, tokenizer)
    scores = {pair: each.score for pair, each in zip(pairs, judge(model, tokenizer, pairs), strict=True)}
    ours = {
        "accuracy": accuracies(scores),
        "greedy": [each.is_greedy for each in answers.likelihoods(questions["pairs"])],
        "numbers": [
            *(each.log_probability for each in answers.likelihoods(questions["pairs"])),
            *answers.whole_likelihoods(questions["texts"]),
        ],
        "texts": [answers.continuation(*prompt) for prompt in questions["prompts"]],
    }
    return {name: {"version": theirs["version"], **row_of(theirs[name], ours)} for name in ASKED}


def accuracies(scores: dict) -> dict[str, float]:
    """Return the accuracy of the group and of each task, by the names of lm_eval."""
    of_tasks: dict[str, list[float]] = {GROUP: list(scores.values())}
    for pair, score in scores.items():
        of_tasks.setdefault(f"{GROUP}_{pair.phenomenon.replace(' ', '_')}", []).append(score)
    return {name: float(np.mean(values)) for name, values in of_tasks.items()}


def row_of(theirs: dict, ours: dict) -> Row:
    """Return how far what a model object found is from what we find."""
    numbers = np.array([*(value for value, _ in theirs["likelihoods"]), *theirs["whole"]])
    same = theirs["accuracy"].keys() == ours["accuracy"].keys() and all(
        abs(theirs["accuracy"][name] - value) < 1e-12 for name, value in ours["accuracy"].items()
    )
    return {
        "largest_difference": float(np.abs(numbers - ours["numbers"]).max()),
        "tolerance": TOLERANCE,
        "same_accuracy": same,
        "same_greedy": [greedy for _, greedy in theirs["likelihoods"]] == ours["greedy"],
        "same_text": theirs["texts"] == ours["texts"],
    }
