"""`benchmarks tokenizer`: training a byte-level BPE tokenizer, and encoding with it.

The peers are Hugging Face's tokenizers and OpenAI's tiktoken, both in Rust. Before
encoding is timed, all must give the same ids. Vocabularies may differ in the order of
equally frequent pairs, so trained ones are compared by the number of tokens of the
corpus.
"""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from benchmarks.race import Contender, Facts, absences, race
from benchmarks.tables import Row, build_table, say_where_we_lose
from npllm.tokenizer import train_bpe
from npllm.tokenizer.pretokenize import GPT2_SPLIT

NPLLM = Contender("npllm", "npllm_worker", {})
TOKENIZERS = Contender("tokenizers", "tokenizers_worker", {"library": "tokenizers"}, tolerance=0.01)
TIKTOKEN = Contender("tiktoken", "tokenizers_worker", {"library": "tiktoken"})


def measure(texts: Sequence[str], vocab_size: int, rounds: int, peers: bool = True) -> list[Row]:
    """Return a row for each of the two tasks and each contender."""
    n_bytes = sum(len(text.encode()) for text in texts)
    with tempfile.TemporaryDirectory() as folder:
        texts_json, tokenizer_json = Path(folder, "texts.json"), Path(folder, "tokenizer.json")
        texts_json.write_text(json.dumps(texts))
        train_bpe(texts, vocab_size).save(tokenizer_json)
        learning = {"texts": str(texts_json), "vocab_size": vocab_size}
        encoding = {"texts": str(texts_json), "tokenizer_json": str(tokenizer_json), "pattern": GPT2_SPLIT}
        learned = race([NPLLM] + [TOKENIZERS] * peers, "train_bpe", learning, check_same_compression, rounds)
        encoded = race([NPLLM] + [TOKENIZERS, TIKTOKEN] * peers, "encode", encoding, check_same_ids, rounds)
    rows = [{"task": "learning", **row} for row in learned] + [{"task": "encoding", **row} for row in encoded]
    for row in rows:
        if "failure" not in row:
            row["mb_per_s"] = n_bytes / row["seconds"] / 1e6
    return rows


def check_same_compression(contender: Contender, theirs: Facts, ours: Facts) -> None:
    """Stop the benchmark unless the vocabularies have equal sizes.

    The corpus must also have the same number of tokens, within the tolerance.
    """
    difference = abs(theirs["n_tokens"] - ours["n_tokens"]) / ours["n_tokens"]
    if theirs["vocab_size"] != ours["vocab_size"] or difference > contender.tolerance:
        raise SystemExit(f"{contender.name} learns another vocabulary ({theirs}) than npllm ({ours}).")


def check_same_ids(contender: Contender, theirs: Facts, ours: Facts) -> None:
    """Stop the benchmark unless every text has the same ids."""
    if theirs["sha256"] != ours["sha256"]:
        raise SystemExit(f"{contender.name} encodes to other ids ({theirs}) than npllm ({ours}); nothing was timed.")


def tables(rows: list[Row]) -> list[Table]:
    """Return the tables to print."""
    columns = {
        "task": ("task", "{}"),
        "contender": ("contender", "{}"),
        "MB/s": ("mb_per_s", "{:.2f}"),
        "seconds": ("seconds", "{:.2f}"),
        "spread": ("spread", "±{:.1%}"),
        "npllm is faster": ("ratio", "{:.2f}×"),
    }
    return [build_table("byte-level BPE", rows, columns)]


def verdict(rows: list[Row]) -> list[str]:
    """Return lines that say who did not take part and why, and where npllm loses."""
    ran = [row for row in rows if "failure" not in row and row["contender"] != "npllm"]
    return absences(rows) + say_where_we_lose(
        [(f"{row['task']} against {row['contender']}", row["ratio"]) for row in ran]
    )
