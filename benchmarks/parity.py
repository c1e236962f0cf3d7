"""`benchmarks parity`: do other libraries compute what we compute?

Models with weights of order one are exported and read by `transformers`, in the
interpreter that NPLLM_PEERS_PYTHON names. Logits, token ids, the conversation format
with its stop token, and the likeliest text are compared, and what transformers saves is
imported again.
"""

import tempfile
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks.peers.process import PeerAbsent
from benchmarks.race import Contender
from benchmarks.tables import Row, build_tables
from npllm.data.prompt_format import CHAT_TOKENS, PromptFormat
from npllm.data.records import Message
from npllm.generation import generate_tokens
from npllm.interop import huggingface
from npllm.model import GPT, ModelConfig
from npllm.tokenizer import Tokenizer, train_bpe
from npllm.tokenizer.tokenizer import END_OF_TEXT

READER = Contender("transformers", "transformers_reader", {}, environment={"HF_HUB_OFFLINE": "1"})
LLAMA = {"norm": "rmsnorm", "position": "rotary", "mlp": "swiglu", "bias": False}
OTHER_SIZES = {"head_dim": 24, "n_inner": 96, "norm_eps": 1e-3, "rope_theta": 5e4}
FAMILIES = {  # the network, and the split of its tokenizer
    "GPT-2": ({}, "gpt2"),
    "Llama": (LLAMA, "llama3"),
    "Llama, 2 key heads, biases, untied": (LLAMA | {"n_kv_head": 2, "bias": True, "tie_embeddings": False}, "gpt2"),
    "Qwen3": (LLAMA | {"qk_norm": True}, "cl100k"),
    "Qwen3, other sizes": (LLAMA | {"qk_norm": True} | OTHER_SIZES, "llama3"),
}
SIZES = {"n_layer": 2, "n_head": 4, "n_embd": 64, "block_size": 64}
VOCAB_SIZE = 600
TEXTS = (
    "Two  spaces,\n\n2023 and def f(x): 🦜 \r\n\t end  ",
    "it's IT'S they'LL naïve Straße ﬁn e\u0301 ½x² ١٢٣٤٥ \u00a0\u2003\u200b_\u0085\x1c",
    "日本語とかな，한국어 العربية हिन्दी ไทย Ελληνικά 👩‍👩‍👧🏽🇨🇭 \U0001d7d8\U000e0001",
    "",
)
CHAT = (("system", "Be brief."), ("user", TEXTS[0]), ("assistant", " 42\n"), ("user", TEXTS[1]))
N_PROMPT, N_TOKENS = 8, 24
TOLERANCE = 1e-4  # of a logit


def measure() -> list[Row]:
    """Return a row for each family."""
    rows = []
    for name in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            rows.append({"reader": READER.name, "family": name, **compared(*example(name), Path(folder))})
    return rows


def example(name: str) -> tuple[GPT, Tokenizer]:
    """Return a model of a family, and its tokenizer."""
    fields, split = FAMILIES[name]
    text = "".join([*TEXTS, *list(topics.values())[:8]])
    tokenizer = train_bpe([text], VOCAB_SIZE, (END_OF_TEXT, *CHAT_TOKENS), split)
    model = GPT(ModelConfig(**SIZES, **fields, vocab_size=tokenizer.vocab_size))
    fill(model)
    return model, tokenizer


def fill(model: GPT) -> None:
    """Give every parameter values of order one: with the initial ones of 0.02 a wrong
    term can be too small to be seen."""
    rng = np.random.default_rng(0)
    for name, array in model.params.items():
        scale = array.shape[0] ** -0.5 if array.ndim == 2 and name.startswith("blocks.") else 0.5
        array[...] = scale * rng.standard_normal(array.shape) + (array.ndim == 1 and name.endswith("weight"))


def questions(model: GPT) -> dict[str, Any]:
    """Return what a reader is asked: the settings of its job."""
    tokens = np.random.default_rng(1).integers(0, model.config.vocab_size, (2, model.config.block_size))
    return {"tokens": tokens.tolist(), "texts": TEXTS, "chat": CHAT, "n_prompt": N_PROMPT, "n_tokens": N_TOKENS}


def compared(model: GPT, tokenizer: Tokenizer, folder: Path) -> Row:
    """Return what transformers makes of a model, compared with what we do."""
    huggingface.save(model, tokenizer, folder / "ours")
    try:
        with READER.start() as worker:
            again = str(folder / "theirs")
            theirs = worker.set_up("read", folder=str(folder / "ours"), again=again, **questions(model))
        again, of_folder = huggingface.load(folder / "theirs")
    except PeerAbsent as error:
        return {"failure": str(error)}
    same_bits = bool((again.params.flat == model.params.flat).all()) and of_folder.sha256() == tokenizer.sha256()
    return answers(theirs, model, tokenizer) | {"same_bits_back": same_bits}


def answers(theirs: dict[str, Any], model: GPT, tokenizer: Tokenizer) -> Row:
    """Return what a reader answered, compared with what we compute."""
    asked, tokens = PromptFormat(tokenizer), np.array(questions(model)["tokens"])
    logits, start = model.logits(tokens), tokens[0, :N_PROMPT].tolist()
    likeliest = list(generate_tokens(model, start, max_tokens=N_TOKENS, temperature=0.0))
    return {
        "version": theirs["version"],
        "largest_difference": float(np.abs(np.array(theirs["logits"], np.float32) - logits).max()),
        "largest_logit": float(np.abs(logits).max()),
        "same_ids": theirs["ids"] == [tokenizer.encode(text) for text in TEXTS],
        "same_chat": theirs["chat"] == asked.encode([Message(*message) for message in CHAT]),
        "same_stop": theirs["stop"] == [asked.stop_id()] * 2,
        "same_text": (theirs["greedy"], theirs["text"]) == (likeliest, tokenizer.decode(likeliest)),
    }


def tables(rows: list[Row]) -> list[Table]:
    """Return a table for each reader that took part."""
    columns = {
        "family": ("family", "{}"),
        "largest difference of logits": ("largest_difference", "{:.1e}"),
        "largest logit": ("largest_logit", "{:.1f}"),
        "same ids": ("same_ids", "{}"),
        "same chat": ("same_chat", "{}"),
        "same stop token": ("same_stop", "{}"),
        "same text": ("same_text", "{}"),
        "same accuracy": ("same_accuracy", "{}"),
        "same bits back": ("same_bits_back", "{}"),
    }
    read = [row for row in rows if "failure" not in row]
    return build_tables("What npllm export writes, as it is read by", read, columns, ("reader",))


def wrong(rows: list[Row]) -> list[str]:
    """Return a sentence for each family that is not the same."""
    found = []
    for row in rows:
        different = [name.removeprefix("same_") for name, same in row.items() if name.startswith("same_") and not same]
        if not row.get("largest_difference", 0.0) <= row.get("tolerance", TOLERANCE):  # NaN is not
            different.append(f"logits (by {row['largest_difference']:.1e})")
        if different:
            found.append(f"{row['family']} differs: {', '.join(different)}")
    return found


def verdict(rows: list[Row]) -> list[str]:
    """Return sentences about what could not be compared, and what read the folders."""
    absent = dict.fromkeys(f"{row['reader']} took no part: {row['failure']}" for row in rows if "failure" in row)
    versions = dict.fromkeys(f"{row['reader']} {row['version']}" for row in rows if "version" in row)
    return [*absent, *versions]
