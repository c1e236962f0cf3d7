"""Every kind of run ends with the recorded weights, to the last bit.

So no refactoring can change a number that training computes. The bits depend on the
processor and on the versions of NumPy and Numba, so each recording is for one machine.
This command records the weights of this machine:

    pytest tests/reliability/test_recorded_weights.py --record-weights

Only a change of the mathematics may replace a recording.
"""

import json
import platform
from pathlib import Path

import llvmlite.binding
import numba
import numpy as np
import pytest
from small_runs import run, state_digests
from stage_runs import DEMONSTRATIONS, PREFERENCES, PROMPTS, pretrained, stage_arguments, write_jsonl

RECORDED = Path(__file__).with_name("recorded_weights.json")
MACHINE = " ".join([llvmlite.binding.get_host_cpu_name(), platform.machine(), np.__version__, numba.__version__])

LORA = {"adapt__lora_rank": 2}
ROLLOUT = {"ppo__rollout_size": 8, "ppo__epochs": 2, "ppo__group": 2, "ppo__max_tokens": 6}
TEXTS = [
    {"text": f"the {label} {words} {'a ' * number}", "label": label}
    for number in range(6)
    for label, words in (("cat", "sat on"), ("dog", "ran under"))
]
STAGES = {
    "sft": ("sft", "pretrained", {"data": "demonstrations.jsonl"}),
    "sft with lora": ("sft", "pretrained", {"data": "demonstrations.jsonl", **LORA}),
    "classify": ("classify", "pretrained", {"data": "texts.jsonl", "classify__labels": 2, "classify__seeds": 2}),
    "reward": ("reward", "sft", {"data": "preferences.jsonl"}),
    "reward with lora": ("reward", "sft", {"data": "preferences.jsonl", **LORA}),
    "dpo": ("dpo", "sft", {"data": "preferences.jsonl"}),
    **{
        method: ("ppo", "sft", {"prompts": "prompts.jsonl", "reward": "reward", "ppo__method": method, **ROLLOUT})
        for method in ("ppo", "rloo", "grpo")
    },
    "ppo with lora": ("ppo", "sft", {"prompts": "prompts.jsonl", "reward": "reward with lora", **ROLLOUT, **LORA}),
}


@pytest.fixture(scope="module")
def final_weights(tmp_path_factory):
    """Name of a run -> name of an array of its last checkpoint -> SHA-256."""
    folder = tmp_path_factory.mktemp("recorded")
    write_jsonl(folder / "demonstrations.jsonl", DEMONSTRATIONS)
    write_jsonl(folder / "preferences.jsonl", PREFERENCES)
    write_jsonl(folder / "prompts.jsonl", PROMPTS)
    write_jsonl(folder / "texts.jsonl", TEXTS)
    found = {"pretrain": pretrained(folder, model__dropout=0.2, train__steps=20, optim__lr=1e-2)}
    for name, (verb, base, changes) in STAGES.items():
        files = {key: folder / changes[key] for key in ("data", "prompts", "reward") if key in changes}
        assert run(*stage_arguments(verb, folder / base, folder / name, **changes | files)) == 0
        found[name] = folder / name
    return {name: state_digests(path) for name, path in found.items()}


@pytest.mark.parametrize("name", ["pretrain", *STAGES])
def test_the_final_weights_are_the_recorded_ones(final_weights, request, name):
    recorded = json.loads(RECORDED.read_text())
    if request.config.getoption("--record-weights"):
        recorded.setdefault(MACHINE, {})[name] = final_weights[name]
        RECORDED.write_text(json.dumps(recorded, indent=1) + "\n")
    if MACHINE not in recorded:
        pytest.skip(f"no weights are recorded for {MACHINE}")
    assert final_weights[name] == recorded[MACHINE][name]
