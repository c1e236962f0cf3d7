"""The verbs that are no stages: one short typed function each.

The docstring of a function is the verb's help, and its parameters are the options.
Everything heavy is imported inside the functions, so that `npllm --help` stays quick.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

import npllm
from npllm.errors import DataError
from npllm.output import TextConsole, one_line, show
from npllm.training.stages import input_checks, stage_in

LARGEST_INPUT = 1 << 26  # characters of standard input, which is read as a whole


def resume(run: Positional[Path]) -> None:
    """Continue a run exactly where it stopped, however it stopped.

    Args:
        run: folder of the run
    """
    from npllm.runs.run_folder import open_run
    from npllm.training.stage import train_run

    folder = open_run(run)
    train_run(folder, TextConsole(), stage_in(folder.config))


def generate(
    run: Positional[Path],
    *,
    prompt: str = "",
    max_tokens: int = 256,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float = 1.0,
    seed: int = 0,
    dtype: Literal["float32", "bf16"] | None = None,
) -> None:
    """Generate text with a trained model, token by token.

    Args:
        run: folder of the run, or a checkpoint in it
        prompt: text to continue or, for a chat model, to answer; empty = a new document
        max_tokens: most new tokens; past block_size the older half is forgotten
        temperature: 0 = the likeliest token, 1 = as the model says, above = more random
        top_k: choose among the k likeliest tokens only; none = among all
        top_p: choose among the fewest tokens that together have this probability
        seed: same seed, same text
        dtype: bf16 = weights rounded to bfloat16, half the bytes; none = as in training
    """
    from npllm.data.prompt_format import PromptFormat
    from npllm.generation import check_writes

    model, tokenizer = npllm.load(run, dtype=dtype)
    check_writes(model, run)
    pieces = npllm.generate(
        model,
        tokenizer,
        prompt,
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
    )
    if not PromptFormat(tokenizer).is_chat:  # print a prompt before its continuation, not before an answer
        show(prompt, end="")
    for piece in pieces:
        show(piece, end="")
    print()


def evaluate(run: Positional[Path], *, data: Path | None = None) -> None:
    """Print loss, perplexity and bits per byte over a whole text.

    Args:
        run: folder of the run, or a checkpoint in it
        data: a UTF-8 text file; none = the run's validation text
    """
    from npllm.training.results import evaluate_run

    result = evaluate_run(run, data, TextConsole())
    print(f"loss           {result.loss:.4f} nats per token")
    print(f"perplexity     {result.perplexity:.3f}")
    print(f"bits per byte  {result.bits_per_byte:.4f}")
    print(f"text           {result.n_bytes:,} bytes, {result.n_tokens:,} predicted tokens")


def verify(run: Positional[Path]) -> None:
    """Check every file of a run: hashes, contents, and that they belong together.

    Args:
        run: folder of the run
    """
    from npllm.runs.run_folder import open_run
    from npllm.runs.verify import verify_run

    folder = open_run(run)
    results = dict(verify_run(folder, input_checks(folder)))
    for path, complaint in results.items():
        line = f"{'damaged' if complaint else 'ok':9}{path.relative_to(run)}{f': {complaint}' if complaint else ''}"
        show(one_line(line))
    if damaged := sum(complaint is not None for complaint in results.values()):
        raise DataError(f"{run} has {damaged} damaged of {len(results)} files; do what the line of each one says.")


def warmup(*, clear: bool = False) -> None:
    """Compile the kernels of training and generation now; later runs start faster.

    Args:
        clear: first delete all kernels that were compiled earlier
    """
    from npllm.kernels import compiled_cache
    from npllm.training.compile_ahead import compiling_ahead
    from npllm.training.warmup import compile_kernels, every_kind

    console = TextConsole()
    if clear:
        compiled_cache.clear()
    with console.status("compiling kernels (kept for later runs)"):
        with compiling_ahead(every_kind(), console):
            pass
        compile_kernels()


def tokenizer_train(
    source: Positional[tuple[str, ...]], *, out: Path, vocab_size: int = 2048, field: str | None = None
) -> None:
    """Train a byte-level BPE tokenizer.

    Args:
        source: stdlib, pydoc, or files, folders and glob patterns
        out: tokenizer.json to write
        vocab_size: number of tokens
        field: key that holds the text in each line of a .jsonl file, such as text
    """
    from npllm.data.corpora import load_corpus
    from npllm.tokenizer import train_bpe

    corpus = load_corpus(source, field=field)
    train_bpe((document.text for document in corpus.train + corpus.val), vocab_size).save(out)
    for line in corpus.remarks:
        show(one_line(line))
    show(one_line(f"{out}: {vocab_size} tokens from {(corpus.train_bytes + corpus.val_bytes) / 1e6:.1f} MB"))


def tokenizer_encode(tokenizer: Positional[Path], text: Positional[str | None] = None) -> None:
    """Print the token ids of a text.

    Args:
        tokenizer: tokenizer.json or a folder with one, such as a run
        text: the text; without it, standard input
    """
    from npllm.tokenizer import Tokenizer

    print(*Tokenizer.load(tokenizer).encode(_standard_input() if text is None else text))


def tokenizer_decode(tokenizer: Positional[Path], ids: Positional[tuple[int, ...]] = ()) -> None:
    """Print the text of token ids.

    Args:
        tokenizer: tokenizer.json or a folder with one, such as a run
        ids: the ids; without them, standard input
    """
    from npllm.tokenizer import Tokenizer

    try:
        numbers = list(ids) or [int(word) for word in _standard_input().split()]
    except ValueError as error:
        raise DataError(
            f"Standard input is not a list of token ids ({error}); give whole numbers between spaces."
        ) from error
    show(Tokenizer.load(tokenizer).decode(numbers))


def demo_spike(*, out: Path | None = None, seed: int = 0) -> None:
    """Poison some batches; train with rollback, only skipping, without detection.

    Args:
        out: folder of the first run and of spike.png; none = runs/spike-demo
        seed: seed of the initial weights, the order of the data and the poison
    """
    from npllm.runs.new_run import claim_run
    from npllm.training.spike_demo import run_demo

    with claim_run(out, "spike-demo") as path:
        run_demo(path, seed, TextConsole())


def chat(
    run: Positional[Path], *, max_tokens: int = 256, temperature: float = 0.8, top_p: float = 0.95, seed: int = 0
) -> None:
    """Talk with a model that npllm sft made; an empty line or Ctrl-D ends the talk.

    Args:
        run: folder of the run, or a checkpoint in it
        max_tokens: longest answer, in tokens; past block_size the start is forgotten
        temperature: 0 = always the likeliest token, 1 = as the model says
        top_p: choose among the fewest tokens that together have this probability
        seed: same seed and same questions, same answers
    """
    from npllm.finetuning.chat import chat as run_chat

    run_chat(run, max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)


def rlhf(*, task: str, out: Path | None = None, seeds: int = 1, overoptimise: bool = False) -> None:
    """Run the whole pipeline on one task, from pretraining to a report card.

    Args:
        task: paths (minutes), code (a quarter of an hour), or a Python file with a Task
        out: folder, new or of a pipeline that stopped; none = runs/rlhf-TASK
        seeds: runs of the pipeline with a seed each; the figures are means over them
        overoptimise: also fool reward models trained on few pairs; four times as long
    """
    from npllm.rlhf.report_card import run_and_report

    run_and_report(task, out, seeds, TextConsole(), overoptimise=overoptimise)


def _standard_input() -> str:
    try:
        text = sys.stdin.read(LARGEST_INPUT + 1)
    except UnicodeDecodeError as error:
        raise DataError(f"Standard input is not UTF-8 ({error}); convert it to UTF-8.") from error
    if len(text) > LARGEST_INPUT:
        raise DataError(f"Standard input has more than {LARGEST_INPUT:,} characters; split it.")
    return text


OTHER_VERBS: dict[str, Callable[..., None]] = {
    "resume": resume,
    "generate": generate,
    "chat": chat,
    "evaluate": evaluate,
    "verify": verify,
    "warmup": warmup,
    "tokenizer train": tokenizer_train,
    "tokenizer encode": tokenizer_encode,
    "tokenizer decode": tokenizer_decode,
    "rlhf": rlhf,
    "demo spike": demo_spike,
}
