"""What EleutherAI's harness asks of a model, in texts: likelihoods and continuations.

`lm_eval.py` gives it the form that the harness calls; this file does not need the
harness. Where a model's tokens and the harness's texts meet, its rules count:

- An empty context stands for the end-of-text token.
- White space at the end of a context belongs to the continuation.
- Context and continuation are encoded together: the tokens of the continuation are
  those after as many tokens as the context alone has.
- Text that the model cannot see at once loses its start.

Source: Gao et al., "A framework for few-shot language model evaluation", 2021; the base
classes of version 0.4.13.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from npllm.data.prompt_format import PromptFormat
from npllm.errors import ConfigError
from npllm.generation import check_writes, generate_tokens
from npllm.generation.likelihood import ROWS_AT_ONCE, Likelihood, log_likelihoods
from npllm.generation.stop_texts import before_stop
from npllm.model import GPT
from npllm.tokenizer import Tokenizer

MOST_TOKENS = 256  # of a continuation for which the harness gives no number
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # the first that is given counts
SAMPLING = ("top_k", "top_p", "min_p", "repetition_penalty")

Ids = list[int]


class Answers:
    """The answers of a model to the harness's requests, in the order of the requests.

    rows: how many texts go through the model at once; it does not change the answers.
    seed: of the texts that are sampled. Raises ConfigError for a model that judges
    texts, and for a vocabulary without a token that can start a text.
    """

    def __init__(self, model: GPT, tokenizer: Tokenizer, *, rows: int = ROWS_AT_ONCE, seed: int = 0):
        check_writes(model, "This model")
        if rows < 1:
            raise ConfigError(f"batch_size is {rows}; set it to at least 1.")
        self.model, self.tokenizer, self.rows, self.seed = model, tokenizer, rows, seed
        self.format = PromptFormat(tokenizer)
        self.start = self.format.document_start()

    def likelihoods(self, requests: Sequence[tuple[str, str]]) -> list[Likelihood]:
        """The likelihood of each continuation after its context."""
        return log_likelihoods(self.model, [self._encoded(*request) for request in requests], rows=self.rows)

    def whole_likelihoods(self, texts: Sequence[str]) -> list[float]:
        """The log-probability of each text, however long, in nats."""
        parts = [(number, window) for number, text in enumerate(texts) for window in self._windows(text)]
        found = log_likelihoods(self.model, [window for _, window in parts], rows=self.rows)
        sums = [0.0] * len(texts)
        for (number, _), likelihood in zip(parts, found, strict=True):
            sums[number] += likelihood.log_probability
        return sums

    def continuation(self, context: str, settings: Mapping[str, Any], number: int = 0) -> str:
        """The text that follows a context, up to the first of the texts `until`, or to
        the end of the document.

        settings: `until`, the most tokens, `do_sample`, `temperature` and the names of
        SAMPLING; see `check_settings`. number: of the text; each gives another sample.
        A context is cut from the left to the room that the most tokens leave, but not
        below half of block_size.
        """
        check_settings(settings)
        T = self.model.config.block_size
        n = next((int(settings[name]) for name in LENGTHS if settings.get(name) is not None), MOST_TOKENS)
        until = settings.get("until") or []
        ids = self.format.encode_text(context)
        tokens = generate_tokens(
            self.model,
            ids[-max(T - n, T // 2, 1) :],
            max_tokens=n,
            temperature=temperature_of(settings),
            seed=self.seed,
            sample=number,
            **{name: settings[name] for name in SAMPLING if settings.get(name) is not None},
        )
        stop = [until] if isinstance(until, str) else until
        return "".join(before_stop(self.format.pieces(tokens), [text for text in stop if text]))

    def _encoded(self, context: str, continuation: str) -> tuple[Ids, Ids]:
        kept = context.rstrip()
        whole = self.tokenizer.encode(context + continuation)
        before = self.tokenizer.encode(kept)
        return (before, whole[len(before) :]) if before else (self.start, whole)

    def _windows(self, text: str) -> Iterator[tuple[Ids, Ids]]:
        """Parts of a text's tokens, each with a context. The parts do not overlap. The
        first one follows the end-of-text token, and the others one token of the text;
        the last one has as much context as fits."""
        tokens, T = self.tokenizer.encode(text), self.model.config.block_size
        known = [*self.start, *tokens]
        for first in range(0, len(tokens), T):
            end = min(first + T, len(tokens))
            yield known[max(0, end - T) : first + 1], tokens[first:end]


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise ConfigError for a setting of a continuation that is not known."""
    known = ("until", *LENGTHS, "do_sample", "temperature", *SAMPLING)
    if unknown := [name for name in settings if name not in known]:
        raise ConfigError(
            f"generation_kwargs has {unknown[0]!r:.80}, which npllm does not have; use only {', '.join(known)}."
        )


def temperature_of(settings: Mapping[str, Any]) -> float:
    """The temperature of a continuation; 0 = the likeliest text.

    A task samples if `do_sample` says so or, without it, if there is a temperature.
    """
    if settings.get("do_sample") is False:
        return 0.0
    given = settings.get("temperature")
    return float(given) if given is not None else float(bool(settings.get("do_sample")))
