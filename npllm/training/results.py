"""The report at the end of pretraining: the loss on the whole validation text beside
the figures of compressors, samples, a plot, and the next command."""

import codecs
import re
from pathlib import Path

from rich.console import Console
from rich.table import Table

from npllm.data.compression import bits_per_byte_of_compressors
from npllm.data.sampler import count_windows
from npllm.data.shards import TokenShard, read_shard
from npllm.files.atomic import write_atomically
from npllm.generation import generate
from npllm.model import GPT
from npllm.output import shell_word
from npllm.report.plots import RunHistory, draw_if_possible, plot_loss
from npllm.runs.ledger import Ledger
from npllm.runs.metrics import read_metrics
from npllm.runs.run_folder import RunFolder
from npllm.runs.summary import write_summary
from npllm.tokenizer import Tokenizer
from npllm.training.evaluation import evaluate, quick_loss
from npllm.training.previous_run import compare_with_previous
from npllm.training.samples import prompt_tokens
from npllm.training.state import LoopState
from npllm.training.verdict import verdict

SAMPLE_TOKENS = 160


def report_results(run: RunFolder, state: LoopState, val_shard: TokenShard, console: Console) -> str:
    """Evaluate on the whole validation text and on as much of the training text; write
    summary.json, samples.txt and loss.png; print the results. Returns a shell command
    to try next."""
    tokenizer, train_shard = run.load_tokenizer(), read_shard(run.train_shard)
    result = evaluate(state.model, val_shard.tokens, val_shard.n_bytes, console)
    n_windows = count_windows(len(val_shard.tokens), state.model.config.block_size)
    train_loss = quick_loss(state.model, train_shard.tokens, n_windows, console)
    with console.status("compressing the validation text"):
        compressors = bits_per_byte_of_compressors(shard_text(val_shard, tokenizer))
    samples = write_samples(run, state.model, tokenizer, val_shard)
    figures = {
        "val_loss": result.loss,
        "val_perplexity": result.perplexity,
        "val_bits_per_byte": result.bits_per_byte,
        "train_loss": train_loss,
        **{f"{name}_bits_per_byte": bits for name, bits in compressors.items()},
    }
    write_summary(run, state, figures)

    table = Table(f"{val_shard.n_bytes:,} bytes of held-out text", "bits per byte")
    table.add_row("this model", f"{result.bits_per_byte:.3f}", style="bold")
    for name, bits in compressors.items():
        table.add_row(f"{name} -9", f"{bits:.3f}")
    console.print(table)
    line = f"loss {result.loss:.4f} nats per token, perplexity {result.perplexity:.2f}"
    console.print(f"{line}; loss of as much training text {train_loss:.4f}", soft_wrap=True)
    if comparison := compare_with_previous(run, val_shard, result.bits_per_byte):
        console.print(comparison, soft_wrap=True)
    for sentence in verdict(run, state.model, train_shard, val_shard, result, train_loss, compressors):
        console.print(sentence, style="yellow", soft_wrap=True)
    for prompt, text in samples:
        console.rule("sample", style="dim")
        console.print(prompt, style="dim", end="")
        console.print(text)
    console.rule(style="dim")
    history = RunHistory(read_metrics(run.metrics), Ledger(run.ledger).events)
    plot = draw_if_possible("loss plot", run.loss_plot, lambda: plot_loss(history, run.loss_plot))
    console.print(plot, soft_wrap=True)
    return next_command(run.path, prompt=samples[0][0])


def next_command(path: Path, prompt: str) -> str:
    """A shell command to try next: `npllm generate` with the first word of a prompt, if
    it has one."""
    command = f"npllm generate {shell_word(path)}"
    # With the space after it only if there is one: not every vocabulary has a space.
    first_word = re.search(r"\S+ ?", prompt)
    return f"{command} --prompt={shell_word(first_word[0])}" if first_word else command


def write_samples(run: RunFolder, model: GPT, tokenizer: Tokenizer, val_shard: TokenShard) -> list[tuple[str, str]]:
    """Continue three prompts from the validation text, and write samples.txt. Returns
    the pairs (prompt, continuation)."""
    samples = []
    for seed, start in enumerate(sample_positions(val_shard)):
        tokens = prompt_tokens(val_shard, start, model.config.block_size)
        prompt = whole_characters(tokenizer.decode_bytes(tokens))
        samples.append((prompt, "".join(generate(model, tokenizer, prompt, max_tokens=SAMPLE_TOKENS, seed=seed))))
    lines = [f"=== sample {i}: prompt, then continuation ===\n{p}|{text}\n" for i, (p, text) in enumerate(samples, 1)]
    write_atomically(run.samples, "\n".join(lines).encode())
    return samples


def whole_characters(excerpt: bytes) -> str:
    """An excerpt of UTF-8 bytes as text, without cut characters at its ends."""
    continuation = bytes(range(0x80, 0xC0))
    return codecs.getincrementaldecoder("utf-8")(errors="replace").decode(excerpt.lstrip(continuation))


def sample_positions(shard: TokenShard) -> list[int]:
    """Three positions in a shard's tokens: starts of documents if there are at least
    three, else evenly spread."""
    starts = shard.document_starts
    if len(starts) >= 3:
        return [int(starts[i * len(starts) // 3]) for i in range(3)]
    return [i * len(shard.tokens) // 3 for i in range(3)]


def shard_text(shard: TokenShard, tokenizer: Tokenizer) -> bytes:
    """The bytes of a shard's text, without the end-of-text tokens between documents."""
    tokens = shard.tokens if shard.eot_id is None else shard.tokens[shard.tokens != shard.eot_id]
    return tokenizer.decode_bytes(tokens)
