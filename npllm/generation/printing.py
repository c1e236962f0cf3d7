"""Prints generated texts while they are written: some prompts, some texts for each."""

import warnings
from collections.abc import Sequence

from npllm.data.prompt_format import PromptFormat
from npllm.data.records import PromptText
from npllm.errors import ConfigError, NpllmWarning
from npllm.generation.generate import generate
from npllm.model import GPT
from npllm.output import show


def print_texts(model: GPT, tokenizer, prompts: Sequence[PromptText], n: int, **settings) -> None:
    """Print n texts for each prompt, each as soon as its tokens are there.

    A prompt is printed before its continuation, but not before an answer. Where there
    are several texts, a line before each one says which it is. An NpllmWarning at the
    end says whether a text became longer than the model sees at once.

    settings: of `generate`. Raises what `generate` raises, and ConfigError for n below
    1, before anything is printed.
    """
    if n < 1:
        raise ConfigError(f"n is {n}; set it to at least 1.")
    longer: list[bool] = []
    settings["on_reread"] = lambda: longer.append(True)
    first_texts = [generate(model, tokenizer, prompt, **settings) for prompt in prompts]
    shows_prompts = not PromptFormat(tokenizer).is_chat
    for place, (prompt, text) in enumerate(zip(prompts, first_texts, strict=True), 1):
        for sample in range(n):
            if heading := _heading(place, len(prompts), sample + 1, n):
                show(heading)
            if shows_prompts:
                show(prompt, end="")
            if sample:
                with warnings.catch_warnings(action="ignore", category=NpllmWarning):  # the first text raised it
                    text = generate(model, tokenizer, prompt, sample=sample, **settings)
            for piece in text:
                show(piece, end="")
            show("")
    if longer:
        warnings.warn(
            f"The model sees {model.config.block_size} tokens at once; past them it forgot the older half of the text, "
            "read the newer half again, and went on.",
            NpllmWarning,
            stacklevel=2,
        )


def _heading(place: int, n_prompts: int, sample: int, n: int) -> str:
    """The line before a text that is one of several; "" for a single text."""
    parts = [f"prompt {place} of {n_prompts}"] * (n_prompts > 1) + [f"sample {sample} of {n}"] * (n > 1)
    return f"=== {', '.join(parts)} ===" if parts else ""
