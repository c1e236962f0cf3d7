"""`benchmarks generate`: one text at a time, with a KV cache, at GPT-2's size.

Every token needs every weight once, and little arithmetic, so the limit is the
bandwidth of the memory. A time is that of a whole call, including the prompt. All
contenders must generate the same tokens before anything is timed.
"""

import numpy as np
from rich.table import Table

from benchmarks.peers.parameter_file import shared_model
from benchmarks.race import Contender, Facts, absences, race
from benchmarks.tables import Row, build_table, say_where_we_lose
from npllm.model import ModelConfig
from npllm.model.parameters import parameter_shapes

GPT2 = ModelConfig(n_layer=12, n_head=12, n_embd=768, block_size=1024, vocab_size=50257)
N_PROMPT, N_TOKENS = 32, 48
WEIGHT_BYTES = {"float32": 4, "bf16": 2, "bfloat16": 2}

CONTENDERS = [
    Contender("npllm", "npllm_worker", {"mode": "float32"}),
    Contender("npllm bf16", "npllm_worker", {"mode": "bf16"}),
    Contender("Hugging Face", "huggingface_worker", {"mode": "float32"}),
    Contender("Hugging Face bf16", "huggingface_worker", {"mode": "bfloat16"}),
]


def measure(model: ModelConfig, rounds: int, bandwidth: float, peers: bool = True) -> list[Row]:
    """Return a row for each contender.

    bandwidth: of the memory, in bytes per second.
    """
    contenders = [contender for contender in CONTENDERS if peers or not contender.is_peer]
    prompt = np.random.default_rng(0).integers(0, model.vocab_size, N_PROMPT).tolist()
    with shared_model(model) as settings:
        rows = race(
            contenders, "generate", settings | {"prompt": prompt, "n_tokens": N_TOKENS}, check_same_text, rounds
        )
    for contender, row in zip(contenders, rows, strict=True):
        if "failure" not in row:
            row["tokens_per_s"] = N_TOKENS / row["seconds"]
            n_bytes = weights_per_token(model) * WEIGHT_BYTES[contender.settings["mode"]]
            row["gb_per_s"] = n_bytes * row["tokens_per_s"] / 1e9
            row["share_of_bandwidth"] = 1e9 * row["gb_per_s"] / bandwidth
    return rows


def weights_per_token(model: ModelConfig) -> int:
    """Return how many numbers must be read to generate one more token.

    They are all parameters but the positions, of which one row is read. The token
    embedding counts because the head needs all of it.
    """
    shapes = parameter_shapes(model)
    return sum(int(np.prod(shape)) for name, shape in shapes.items() if name != "position_embedding") + model.n_embd


def check_same_text(contender: Contender, theirs: Facts, ours: Facts) -> None:
    """Stop the benchmark unless the tokens are the same.

    Only the first token is compared for rounded weights, which may diverge later.
    """
    n = N_TOKENS if contender.settings["mode"] == "float32" else 1
    if theirs["tokens"][:n] != ours["tokens"][:n]:
        raise SystemExit(
            f"{contender.name} generates {theirs['tokens']}, but npllm {ours['tokens']}; nothing was timed."
        )


def tables(rows: list[Row]) -> list[Table]:
    """Return the tables to print."""
    columns = {
        "contender": ("contender", "{}"),
        "tokens/s": ("tokens_per_s", "{:.1f}"),
        "spread": ("spread", "±{:.1%}"),
        "npllm is faster": ("ratio", "{:.2f}×"),
        "weights read, GB/s": ("gb_per_s", "{:.1f}"),
        "of bandwidth": ("share_of_bandwidth", "{:.0%}"),
        "peak MB": ("peak_mb", "{:,.0f}"),
    }
    return [build_table(f"generation: {N_TOKENS} tokens after a prompt of {N_PROMPT}, batch 1", rows, columns)]


def verdict(rows: list[Row]) -> list[str]:
    """Return lines that say who did not take part and why, and where npllm loses."""
    ran = {row["contender"]: row["ratio"] for row in rows if "failure" not in row}
    pairs = [("npllm", "Hugging Face"), ("npllm bf16", "Hugging Face"), ("npllm bf16", "Hugging Face bf16")]
    comparisons = [(f"{us} against {them}", ran[them] / ran[us]) for us, them in pairs if us in ran and them in ran]
    return absences(rows) + say_where_we_lose(comparisons)
