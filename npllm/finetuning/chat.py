"""`npllm chat`: a conversation with a fine-tuned model."""

from collections.abc import Iterator
from pathlib import Path

from npllm.data.chat import ASSISTANT, END, encode_messages_prompt
from npllm.data.records import Message, read_prompts
from npllm.errors import ConfigError, DataError
from npllm.finetuning.stage_run import record_file
from npllm.generation import generate_tokens
from npllm.generation.sampling import check_sampling
from npllm.tokenizer import Tokenizer
from npllm.training.run_folder import RunFolder, load, run_of


def chat(path: Path, *, max_tokens: int, temperature: float, top_p: float, seed: int) -> None:
    """Read lines from standard input, answer each; an empty line or the end of the input ends it.

    A model that learnt from conversations sees the whole one; a model that learnt from prompts and responses sees each
    line alone, as a prompt.
    """
    check_sampling(max_tokens, temperature, None, top_p, seed)
    model, tokenizer = load(path)
    end = "" if ASSISTANT in tokenizer.special_tokens else prompt_end(run_of(path))
    messages: list[Message] = []
    while line := _ask():
        messages = [*messages, Message("user", line)]
        ids, stop_id = prompt_of(messages, tokenizer, end)
        tokens = generate_tokens(
            model, ids, max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed + len(messages)
        )
        answer = ""
        for piece in _pieces(tokens, tokenizer, stop_id):
            print(piece, end="", flush=True)
            answer += piece
        print()
        messages = [*messages, Message("assistant", answer)]


def prompt_of(messages: list[Message], tokenizer: Tokenizer, end: str) -> tuple[list[int], int]:
    """The ids to continue, and the token that ends the answer. end: of a prompt that stands alone. Raises ConfigError
    where there is no such token."""
    if ASSISTANT in tokenizer.special_tokens:
        return encode_messages_prompt(tokenizer, messages), tokenizer.special_tokens[END]
    if tokenizer.eot_id is None:
        raise ConfigError("The model has no token that ends an answer; run npllm sft first.")
    return tokenizer.encode(messages[-1].content + end), tokenizer.eot_id


def prompt_end(run: RunFolder) -> str:
    """A line feed where the prompts that the model learnt from end in one, which a line of input never does."""
    for path in (record_file(run, "train"), record_file(run, "prompts")):
        if path.exists():
            return "\n" if read_prompts(path)[0].endswith("\n") else ""
    return ""


def _pieces(tokens: Iterator[int], tokenizer: Tokenizer, stop_id: int) -> Iterator[str]:
    """The text of tokens up to the stop token, in whole characters."""
    decoder = tokenizer.stream_decoder()
    for token in tokens:
        if token == stop_id:
            break
        yield decoder.push(token)
    yield decoder.finish()


def _ask() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        print()
        return ""
    except UnicodeDecodeError as error:
        raise DataError(f"Standard input is not UTF-8 ({error}).") from error
