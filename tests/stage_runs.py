"""Tiny runs of the stages after pretraining: base models, records, command lines."""

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
from small_runs import pretrain_arguments, run, write_text

STEPS = 6
DEMONSTRATIONS = [
    {"prompt": prompt, "response": response}
    for prompt, response in [
        ("the cat", "sat on a mat"),
        ("a dog", "ran"),
        ("the roof", "purred"),
        ("on", "under"),
        ("a mat", "and a roof"),
        ("under", "the dog and the cat"),
    ]
]
PREFERENCES = [
    {"prompt": f"{animal} {verb} ", "chosen": chosen, "rejected": rejected}
    for animal in ("the cat", "a dog")
    for verb in ("sat", "ran", "purred")
    for chosen, rejected in (("on a mat", "mat a on"), ("under the roof", "roof"))
]
PROMPTS = [{"prompt": prompt} for prompt in ("the cat", "a dog ran", "on", "a mat and", "under the roof")]
LABELLED = [
    {"text": f"the {label} {words} {'a ' * number}", "label": label}
    for number in range(6)
    for label, words in (("cat", "sat on"), ("dog", "ran under"))
]
ROLLOUT = {"ppo__rollout_size": 8, "ppo__epochs": 2, "ppo__group": 2, "ppo__max_tokens": 6}
# Small enough for every stage. The learning rates are high, so that each update changes
# the batch results of the next one.
TINY = {
    "optim.lr": 1e-2,
    "optim.warmup_steps": 1,
    "batch.size": 4,
    "batch.micro_size": 2,
    "train.steps": STEPS,
    "train.checkpoint_every": 4,
    "train.eval_every": 2,
}


def conversations(demonstrations: Iterable[dict]) -> list[dict]:
    """The same demonstrations as chats of one question and one answer."""
    return [
        {"messages": [{"role": "user", "content": d["prompt"]}, {"role": "assistant", "content": d["response"]}]}
        for d in demonstrations
    ]


def write_jsonl(path: Path, records: Iterable[dict]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def pretrained(folder: Path, **changes) -> Path:
    """A finished run of `npllm pretrain` for a stage to start from.

    It has one layer, a tokenizer of characters and block_size 32.
    """
    settings = {"model__block_size": 32, "model__n_embd": 16, "train__steps": 4} | changes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("npllm.training.results.SAMPLE_TOKENS", 2)
        patch.setattr("npllm.training.results.plot_loss", lambda metrics, path: None)
        assert run(*pretrain_arguments(write_text(folder), folder / "pretrained", **settings)) == 0
    return folder / "pretrained"


def stage_arguments(verb: str, base: Path, out: Path, **changes) -> list[str]:
    """Words of `npllm VERB` from the run `base`.

    adapt__lora_rank=2 stands for --adapt.lora_rank 2.
    """
    settings = TINY | {name.replace("__", "."): value for name, value in changes.items()}
    options = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    return [verb, str(base), "--out", str(out), *options]
