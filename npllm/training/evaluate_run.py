"""`npllm evaluate`: the figures of a run on a text, or on what its stage held out."""

from pathlib import Path

from rich.console import Console

from npllm.data.documents import Document, stored
from npllm.data.shards import read_shard
from npllm.data.text_files import read_text
from npllm.errors import ConfigError
from npllm.model import GPT
from npllm.runs.run_folder import load, run_of
from npllm.tokenizer import Tokenizer
from npllm.training.evaluation import evaluate
from npllm.training.prepare import encode_document
from npllm.training.stage import Figures, load_run_config
from npllm.training.stages import stage_in


def evaluate_run(path: Path, data: Path | None, stride: int | None, console: Console) -> Figures:
    """The figures of a run or a checkpoint, each with its name.

    data: a text file; None = the run's own validation text or, in a run that has none,
    the records that its stage held out. stride: also evaluate the text with a window
    that slides by so many tokens; None = do not. Raises ConfigError for a stride out of
    range or without a text, and for a run that held nothing out.
    """
    model, tokenizer = load(path)
    run, T = run_of(path), model.config.block_size
    if stride is not None and not 1 <= stride <= T:
        raise ConfigError(f"stride is {stride}; set it to at least 1 and to at most model.block_size = {T}.")
    if data is None and run.val_shard.exists():
        shard = read_shard(run.val_shard)
        return text_figures(model, shard.tokens, shard.n_bytes, stride, console)
    if data is None:
        if stride is not None:
            raise ConfigError(f"{path} holds no validation text, which --stride is for; name a text with --data.")
        if not run.config.exists():  # a model that a program saved
            raise ConfigError(f"{path} holds no validation text; name one with --data.")
        stage = stage_in(run.config)
        return stage.held_out_figures(run, load_run_config(run, stage.config_type), model, console)
    return text_figures(model, *tokens_of(data, tokenizer), stride, console)


def tokens_of(path: Path, tokenizer: Tokenizer):
    """The tokens of a text file, (n_tokens,), and its bytes."""
    text = read_text(path)
    return encode_document(tokenizer, Document(str(path), stored(text))), len(text.encode())


def text_figures(model: GPT, tokens, n_bytes: int, stride: int | None, console: Console) -> Figures:
    """The figures of a model on the tokens of a text, (n_tokens,), of n_bytes bytes.

    With a stride, those of the sliding window stand below the others.
    """
    result = evaluate(model, tokens, n_bytes, console)
    figures = [
        ("loss", f"{result.loss:.4f} nats per token"),
        ("perplexity", f"{result.perplexity:.3f}"),
        ("bits per byte", f"{result.bits_per_byte:.4f}"),
    ]
    if stride is not None:
        sliding, T = evaluate(model, tokens, n_bytes, console, stride=stride), model.config.block_size
        figures += [
            (f"stride of {stride}", f"each token has at least {T - stride} tokens before it, if the text has them"),
            ("loss", f"{sliding.loss:.4f} nats per token"),
            ("perplexity", f"{sliding.perplexity:.3f}"),
            ("bits per byte", f"{sliding.bits_per_byte:.4f}"),
        ]
    return [*figures, ("text", f"{result.n_bytes:,} bytes, {result.n_tokens:,} predicted tokens")]
