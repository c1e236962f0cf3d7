"""`benchmarks parity`, third part: does PEFT compute what our LoRA computes?

Models with factors, and with new tokens whose rows are trained, are exported as an
adapter and its base.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks import parity
from benchmarks.peers.process import PeerAbsent
from benchmarks.race import Contender
from benchmarks.tables import Row
from npllm.interop import peft
from npllm.model import GPT
from npllm.tokenizer import Tokenizer

READER = Contender("PEFT", "transformers_reader", {}, environment={"HF_HUB_OFFLINE": "1"})
RANK, NEW_TOKENS = 3, 5


def measure() -> list[Row]:
    """Return a row for each family."""
    rows = []
    for name in parity.FAMILIES:
        plain, tokenizer = parity.example(name)
        model = GPT(replace(plain.config, lora_rank=RANK, lora_new_tokens=NEW_TOKENS))
        model.frozen.flat[:] = plain.params.flat
        rng = np.random.default_rng(2)
        for factor, array in model.params.items():  # their product is a quarter of the weight
            scale = array.shape[0] ** -0.5 if factor.endswith("lora_a") else 0.03 if factor.endswith("lora_b") else 0.5
            array[...] = scale * rng.standard_normal(array.shape)
        with tempfile.TemporaryDirectory() as folder:
            head = {"reader": READER.name, "family": f"{name}, LoRA"}
            rows.append(head | compared(model, tokenizer, Path(folder) / "ours"))
    return rows


def compared(model: GPT, tokenizer: Tokenizer, folder: Path) -> Row:
    """Return what PEFT makes of a model, compared with what we do."""
    peft.save(model, tokenizer, folder)
    try:
        with READER.start() as worker:
            base = str(folder / peft.BASE)
            theirs = worker.set_up("read_adapter", folder=str(folder), base=base, **parity.questions(model))
    except PeerAbsent as error:
        return {"failure": str(error)}
    return parity.answers(theirs, model, tokenizer)
