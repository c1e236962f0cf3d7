"""The verbs that are no stages: one short typed function each.

The docstring of a function is the verb's help, and its parameters are the options.
Everything heavy is imported inside the functions, so that `npllm --help` stays quick.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.table import Table
from tyro.conf import Positional

import npllm
from npllm.errors import ConfigError, DataError
from npllm.output import TextConsole, one_line, shell_word, show
from npllm.runs.arguments import Repeated
from npllm.training.stages import input_checks, open_with_stage

if TYPE_CHECKING:
    from npllm.data.records import PromptText


def resume(run: Positional[Path]) -> None:
    """Continue a run exactly where it stopped, however it stopped.

    Args:
        run: folder of the run
    """
    from npllm.training.stage import train_run

    folder, stage = open_with_stage(run)
    train_run(folder, TextConsole(), stage)


def extend(run: Positional[Path], *, minutes: float = 3.0) -> None:
    """Train a finished run further, with a warm-up and a decay of its own.

    Args:
        run: folder of the run
        minutes: time budget of the new updates
    """
    from npllm.training.extend import extend_run

    extend_run(open_with_stage(run)[0], minutes, TextConsole())


def generate(
    run: Positional[Path],
    *,
    checkpoint: str | None = None,
    prompt: str = "",
    prompt_file: Path | None = None,
    n: int = 1,
    max_tokens: int = 256,
    stop: Repeated[str] = (),
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    dtype: Literal["float32", "bf16"] | None = None,
) -> None:
    """Generate text with a trained model, token by token.

    Args:
        run: folder of the run, or a checkpoint in it
        checkpoint: best = of the lowest validation loss, last, or a step; none = last
        prompt: text to continue or, for a chat model, to answer; empty = a new document
        prompt_file: a text file, or .jsonl, .csv, .tsv of many; - = standard input
        n: number of texts for each prompt
        max_tokens: most new tokens; past block_size the older half is forgotten
        stop: text before which to end; write the option again for each other one
        temperature: 0 = the likeliest token, 1 = as the model says, above = more random
        top_k: choose among the k likeliest tokens only; none = among all
        top_p: choose among the fewest tokens that together have this probability
        min_p: leave out tokens with less than this share of the highest probability
        repetition_penalty: above 1 = tokens that occurred already become less likely
        seed: same seed, same text
        dtype: bf16 = weights rounded to bfloat16, half the bytes; none = as in training
    """
    from npllm.generation import check_writes
    from npllm.generation.printing import print_texts

    prompts = [prompt] if prompt_file is None else _prompts_of(prompt_file, prompt)
    run = _chosen(run, checkpoint)
    model, tokenizer = npllm.load(run, dtype=dtype)
    check_writes(model, run)
    print_texts(
        model,
        tokenizer,
        prompts,
        n,
        max_tokens=max_tokens,
        stop=stop,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )


def evaluate(
    run: Positional[Path],
    *,
    checkpoint: str | None = None,
    data: Path | None = None,
    stride: int | None = None,
    task: Literal["minimal-pairs"] | None = None,
    out: Path | None = None,
) -> None:
    """Print how well a model predicts: loss, perplexity and bits per byte of a text.

    Args:
        run: folder of the run, or a checkpoint in it
        checkpoint: best = of the lowest validation loss, last, or a step; none = last
        data: a UTF-8 text file; none = what the run held out: its validation text or,
            after classify, sft, reward and dpo, its held-out records
        stride: also evaluate the text with a window that slides by so many tokens, so
            that each token has many before it; takes block_size / stride times as long
        task: print instead how often the model does a task right; minimal-pairs = it
            prefers right Python code to code with one mistake
        out: new folder for the task's pairs, as tasks of lm_eval; none = do not write
    """
    from npllm.training.evaluate_run import evaluate_run
    from npllm.training.evaluate_task import evaluate_minimal_pairs

    given = {"--data": data, "--stride": stride} if task else {"--out": out}
    if wrong := [name for name, value in given.items() if value is not None]:
        raise ConfigError(f"{wrong[0]} is {'not for' if task else 'only for'} --task; leave it out.")
    path, console = _chosen(run, checkpoint), TextConsole()
    figures = evaluate_minimal_pairs(path, out, console) if task else evaluate_run(path, data, stride, console)
    for name, value in figures:
        print(f"{name:15}{value}")


def predict(run: Positional[Path], *, checkpoint: str | None = None, data: Path, out: Path | None = None) -> None:
    """Classify the texts of a file: the likeliest label of each, and its probability.

    Args:
        run: folder of a run of npllm classify, or a checkpoint in it
        checkpoint: best = of the lowest validation loss, last, or a step; none = last
        data: csv, tsv or jsonl with text, or a file in which each line is a text
        out: .csv or .jsonl file for the results; none = csv on standard output
    """
    from npllm.finetuning.prediction import predict_file

    predict_file(_chosen(run, checkpoint), data, out, TextConsole())


def score(run: Positional[Path], *, checkpoint: str | None = None, data: Path, out: Path | None = None) -> None:
    """Score the responses of a file with a reward model; higher is better.

    Args:
        run: folder of a run of npllm reward, or a checkpoint in it
        checkpoint: best = of the lowest validation loss, last, or a step; none = last
        data: jsonl with prompt and response, with messages, or with prompt, chosen and
            rejected; or csv or tsv with prompt and response
        out: .csv or .jsonl file for the results; none = csv on standard output
    """
    from npllm.rlhf.scoring import score_file

    score_file(_chosen(run, checkpoint), data, out, TextConsole())


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


def export(
    run: Positional[Path],
    *,
    out: Path,
    format: Literal["hf", "peft", "gguf", "llama2c"] = "hf",
    outtype: Literal["f32", "f16", "q8_0"] = "f32",
    checkpoint: str | None = None,
) -> None:
    """Write a model into the files of another library.

    Args:
        run: folder of the run, or a checkpoint in it
        out: new folder
        format: hf = Hugging Face: transformers and what reads its folders;
            peft = an adapter of PEFT and its base, from a run with adapt.lora_rank;
            gguf = llama.cpp, Ollama and others; llama2c = the C file run.c
        outtype: type of the matrices in a GGUF file
        checkpoint: best = of the lowest validation loss, last, or a step; none = last
    """
    if outtype != "f32" and format != "gguf":
        raise ConfigError(f"--outtype {outtype} is for --format gguf; give both or neither.")
    model, tokenizer = npllm.load(_chosen(run, checkpoint))
    if format == "gguf":
        from npllm.interop import gguf

        gguf.save(model, tokenizer, out, outtype)
        loaded_by = f"llama.cpp loads {gguf.file_name(outtype)}. For Ollama: ollama create NAME -f Modelfile"
    elif format == "peft":
        from npllm.interop import peft

        peft.save(model, tokenizer, out)
        loaded_by = f"PeftModel.from_pretrained loads it onto the model in {out / peft.BASE}."
    elif format == "llama2c":
        from npllm.interop import llama2c

        llama2c.save(model, tokenizer, out)
        loaded_by = f"./run model.bin -z tokenizer.bin loads it. {llama2c.LIMITS}"
    else:
        from npllm.interop import huggingface

        huggingface.save(model, tokenizer, out)
        loaded_by = "AutoModelForCausalLM and AutoTokenizer load it."
    show(one_line(f"{out}: {loaded_by}"))


def import_(folder: Positional[Path], *, out: Path) -> None:
    """Make a model of this package from a folder of Hugging Face.

    Args:
        folder: with config.json, model.safetensors and tokenizer.json
        out: folder of the model; generate, evaluate, sft and pretrain --from take it
    """
    from npllm.interop import huggingface

    npllm.save(*huggingface.load(folder), out)
    show(f"Next: npllm generate {shell_word(out)}")


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
    run: Positional[Path],
    *,
    checkpoint: str | None = None,
    max_tokens: int = 256,
    temperature: float = 0.8,
    top_p: float = 0.95,
    seed: int = 0,
) -> None:
    """Talk with a model that npllm sft made; an empty line or Ctrl-D ends the talk.

    Args:
        run: folder of the run, or a checkpoint in it
        checkpoint: best = of the lowest validation loss, last, or a step; none = last
        max_tokens: longest answer, in tokens; past block_size the start is forgotten
        temperature: 0 = always the likeliest token, 1 = as the model says
        top_p: choose among the fewest tokens that together have this probability
        seed: same seed and same questions, same answers
    """
    from npllm.finetuning.chat import chat as run_chat

    run_chat(_chosen(run, checkpoint), max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)


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


def runs(folder: Positional[Path] = Path("runs")) -> None:
    """List runs with stage, size, data, result and date, the oldest first.

    Args:
        folder: folder that holds runs, at any depth (default: runs)
    """
    from npllm.runs.listing import Listed, list_runs

    rows = list_runs(folder)
    if not sys.stdout.isatty():  # for cut and awk
        for row in (Listed._fields, *rows):
            show("\t".join(map(one_line, row)))
        return
    table = Table(*Listed._fields, box=None, pad_edge=False, collapse_padding=True)
    for row in rows:
        table.add_row(*row)
    TextConsole().print(table)


def _chosen(run: Path, checkpoint: str | None) -> Path:
    """The path that a verb was given, or the checkpoint that --checkpoint chooses of
    it. Standard error says which one: standard output is the result."""
    from npllm.runs.checkpoint_choice import choose_checkpoint

    if checkpoint is None:
        return run
    path = choose_checkpoint(run, checkpoint)
    print(one_line(f"npllm: The weights are those of {path}."), file=sys.stderr)
    return path


def _prompts_of(file: Path, prompt: str) -> "list[PromptText]":
    """The prompts of `npllm generate --prompt_file`. A text loses the line end that an
    editor or `echo` puts after it."""
    from npllm.data.records import WITH_FIELDS, read_prompts
    from npllm.data.text_files import read_text
    from npllm.files.standard_input import standard_input

    if prompt:
        raise ConfigError("--prompt and --prompt_file are both given; leave out one of them.")
    if file.suffix.lower() in WITH_FIELDS:
        return read_prompts(file)
    text = standard_input() if str(file) == "-" else read_text(file)
    return [text.removesuffix("\n").removesuffix("\r")]


OTHER_VERBS: dict[str, Callable[..., None]] = {
    "resume": resume,
    "extend": extend,
    "generate": generate,
    "chat": chat,
    "evaluate": evaluate,
    "predict": predict,
    "score": score,
    "verify": verify,
    "export": export,
    "import": import_,
    "warmup": warmup,
    "rlhf": rlhf,
    "demo spike": demo_spike,
    "runs": runs,
}
