"""What a model answered before a later stage trained it, and what it answers now."""

from typing import NamedTuple

from npllm.data.prompt_format import PromptFormat
from npllm.data.records import PromptText, parts_of, read_demonstrations, read_preferences, read_prompts
from npllm.finetuning.adaptation import AdaptConfig, adapted
from npllm.generation.generate import generate
from npllm.model import GPT
from npllm.runs.inputs import checked_records, load_model
from npllm.runs.run_folder import RunFolder, load
from npllm.tokenizer import Tokenizer

ANSWERS = 3
LONGEST = 64  # tokens of an answer
READERS = {"sft": read_demonstrations, "dpo": read_preferences, "ppo": read_prompts}
RECORDS = {"sft": "val", "dpo": "val", "ppo": "prompts"}


class Answer(NamedTuple):
    """wanted: the responses of the record, if it has any: of a preference the chosen
    and the rejected one."""

    prompt: str
    wanted: tuple[str, ...]
    before: str
    after: str


def answers(run: RunFolder, stage: str) -> list[Answer]:
    """The likeliest answers to the first held-out prompts, before and after the
    training. Empty for a stage whose model writes nothing."""
    if stage not in READERS:
        return []
    records = READERS[stage](checked_records(run, RECORDS[stage]))[:ANSWERS]
    model, tokenizer = load(run.path)
    before = first_model(run, tokenizer)
    found = []
    for record in records:
        prompt, wanted = parts_of(record)
        texts = [answer(each, tokenizer, prompt) for each in (before, model)]
        found.append(Answer(shown(prompt), wanted, *texts))
    return found


def first_model(run: RunFolder, tokenizer: Tokenizer) -> GPT:
    """The model that a later stage started from, with the run's vocabulary."""
    model = load_model(run, "policy")
    if model.config.vocab_size == tokenizer.vocab_size:
        return model
    return adapted(model, AdaptConfig(), vocab_size=tokenizer.vocab_size)


def answer(model: GPT, tokenizer: Tokenizer, prompt: PromptText) -> str:
    """The likeliest tokens after a prompt, whose beginning is cut off if it is too
    long."""
    asked = PromptFormat(tokenizer)
    if len(asked.encode(prompt)) > model.config.block_size:
        return "(the prompt is longer than the model sees at once)"
    return "".join(generate(model, tokenizer, prompt, max_tokens=LONGEST, temperature=0.0))


def shown(prompt: PromptText) -> str:
    """A prompt as text; of a conversation, a line for each message."""
    return prompt if isinstance(prompt, str) else "\n".join(f"{each.role}: {each.content}" for each in prompt)
