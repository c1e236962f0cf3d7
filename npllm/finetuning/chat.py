"""`npllm chat`: a conversation with a fine-tuned model."""

from collections.abc import Iterator
from pathlib import Path

from npllm.data.chat import encode_prompt, learns_conversations, stop_token
from npllm.data.records import Message, read_prompts
from npllm.errors import DataError
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
    has_memory = learns_conversations(tokenizer)
    end = "" if has_memory else prompt_end(run_of(path))
    messages: list[Message] = []
    while line := _ask():
        messages = [*messages, Message("user", line)]
        prompt = encode_prompt(tokenizer, messages if has_memory else line + end)
        tokens = generate_tokens(
            model, prompt, max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed + len(messages)
        )
        answer = ""
        for piece in _pieces(tokens, tokenizer):
            print(piece, end="", flush=True)
            answer += piece
        print()
        messages = [*messages, Message("assistant", answer)]


def prompt_end(run: RunFolder) -> str:
    """A line feed where the prompts that the model learnt from end in one, which a line of input never does."""
    for path in (record_file(run, "train"), record_file(run, "prompts")):
        if path.exists():
            return "\n" if read_prompts(path)[0].endswith("\n") else ""
    return ""


def _pieces(tokens: Iterator[int], tokenizer: Tokenizer) -> Iterator[str]:
    """The text of tokens up to the stop token, in whole characters."""
    decoder, stop_id = tokenizer.stream_decoder(), stop_token(tokenizer)
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
