"""`npllm chat`: a conversation with a fine-tuned model."""

from pathlib import Path

from npllm.data.prompt_format import PromptFormat
from npllm.data.records import Message, read_prompts
from npllm.errors import DataError
from npllm.generation import check_writes, generate
from npllm.generation.sampling import Sampling, check_max_tokens
from npllm.output import show
from npllm.runs.inputs import record_file
from npllm.runs.run_folder import RunFolder, load, run_of


def chat(path: Path, *, max_tokens: int, temperature: float, top_p: float, seed: int) -> None:
    """Answer each line of standard input, until an empty line or the end of the input.

    A model that was trained on conversations reads the whole conversation each time. A
    model that was trained on prompts and responses reads only the line, as a prompt.

    Raises ConfigError for a sampling setting outside its range, for a model that judges
    texts, and for one without a stop token; DataError for input that is not UTF-8.
    """
    check_max_tokens(max_tokens)
    Sampling(temperature=temperature, top_p=top_p, seed=seed)  # raises before the model is loaded
    model, tokenizer = load(path)
    check_writes(model, path)
    asked = PromptFormat(tokenizer)
    asked.stop_id()  # raises ConfigError: a model without a stop token cannot end an answer
    end = "" if asked.is_chat else prompt_end(run_of(path))
    messages: list[Message] = []
    while line := _ask():
        messages.append(Message("user", line))
        prompt = tuple(messages) if asked.is_chat else line + end
        answer = ""
        for piece in generate(
            model,
            tokenizer,
            prompt,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=(seed + len(messages)) % 2**64,
        ):
            show(piece, end="")
            answer += piece
        print()
        messages.append(Message("assistant", answer))


def prompt_end(run: RunFolder) -> str:
    """What to append to a line of input: a line feed or "".

    A line of input never ends in a line feed. If the prompts that the model was trained
    on do, it needs one. The first record of data/train.jsonl decides, or that of
    data/prompts.jsonl in a run of PPO.
    """
    for path in (record_file(run, "train"), record_file(run, "prompts")):
        if path.exists():
            prompt = read_prompts(path)[0]
            return "\n" if isinstance(prompt, str) and prompt.endswith("\n") else ""
    return ""


def _ask() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        print()
        return ""
    except UnicodeDecodeError as error:
        raise DataError(f"Standard input is not UTF-8 ({error}); convert it to UTF-8.") from error
