"""`npllm score`: a reward model says how good responses are."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from rich.console import Console

from npllm.data.fitting import Room, fit
from npllm.data.prompt_format import PromptFormat
from npllm.data.records import PromptText, parts_of, scan_responses
from npllm.data.result_table import check_destination, write_table
from npllm.errors import ConfigError
from npllm.model import GPT
from npllm.output import tracked
from npllm.rlhf.sequences import join, rewards_of, width_of
from npllm.runs.run_folder import load
from npllm.tokenizer import Tokenizer

DECIMALS = 6  # of a score in a file
AT_ONCE = 256  # responses


class RewardModel:
    """A trained reward model.

    Its scores are comparable between responses to one prompt. Their mean and their
    scale mean nothing, because the model was trained on differences.
    """

    def __init__(self, model: GPT, tokenizer: Tokenizer):
        self.model, self.tokenizer = model, tokenizer

    @classmethod
    def load(cls, path: str | Path) -> "RewardModel":
        """Return the reward model of a run of `npllm reward`, or of a checkpoint in it.

        Raises ConfigError for a run of another stage, and DataError for files that are
        missing or damaged.
        """
        model, tokenizer = load(path)
        if model.config.n_outputs != 1:
            kind = "a classifier" if model.config.n_outputs else "a language model"
            raise ConfigError(f"{path} is {kind}, which scores no responses; name a run of npllm reward.")
        return cls(model, tokenizer)

    def score(
        self, prompts: Sequence[PromptText], responses: Sequence[str], console: Console | None = None
    ) -> np.ndarray:
        """Return the score of each response to its prompt, (n,) float64; higher is
        better.

        The score is read at the token that ends the response. prompts: n texts, or
        messages. responses: n texts. console: shows how much is done; None = nothing is
        shown. Raises DataError for a text that the tokenizer cannot encode, and for a
        prompt and response that do not fit into block_size tokens together.
        """
        asked = PromptFormat(self.tokenizer)
        starts = [asked.encode(prompt) for prompt in prompts]
        ends = [np.array(asked.encode_response(response), np.int32) for response in responses]
        longest = max((len(start) + len(end) for start, end in zip(starts, ends, strict=True)), default=0)
        width = width_of(longest, self.model.config.block_size)
        scores, firsts = np.empty(len(ends)), range(0, len(ends), AT_ONCE)
        for first in tracked(firsts, len(firsts), "scoring", console):
            part = slice(first, first + AT_ONCE)
            scores[part] = rewards_of(self.model, join(starts[part], ends[part], width))
        return scores


def score_file(path: Path, data: Path, out: Path | None, console: Console) -> None:
    """Score the responses of a file, and write a table: score, prompt, response.

    path: of the run or checkpoint. data: as in `scan_responses`; a preference gives two
    rows, the chosen response first. out: as in `write_table`. Nothing is written unless
    every response can be scored. Raises DataError that lists the records that cannot
    be, and the errors of `RewardModel.load` and `check_destination`.
    """
    check_destination(out, data)
    judge = RewardModel.load(path)
    room = Room(judge.model.config.block_size, "model.block_size")
    records = fit(scan_responses(data), judge.tokenizer, room, shorten=False).checked()
    pairs = [(prompt, response) for prompt, responses in map(parts_of, records) for response in responses]
    prompts, responses = zip(*pairs, strict=True)
    scores = judge.score(prompts, responses, console if out else None)
    rows = [
        (round(float(score), DECIMALS), _plain(prompt), response)
        for score, (prompt, response) in zip(scores, pairs, strict=True)
    ]
    write_table(out, ("score", "prompt", "response"), rows)


def _plain(prompt: PromptText) -> str | list[dict]:
    """The prompt as JSON can hold it."""
    return prompt if isinstance(prompt, str) else [asdict(message) for message in prompt]
