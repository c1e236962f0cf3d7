"""`benchmarks parity`, second part: does llama.cpp compute what we compute?

The models of the first part are exported as GGUF files of each type and read by
llama-cpp-python. Token ids, conversations and the stop token must be equal, from a
float32 file the likeliest text too. How close the logits must be depends on the type.
llama.cpp takes GELU from a table in float16, so those of GPT-2 differ more.
"""

import tempfile
from pathlib import Path
from typing import get_args

from benchmarks import parity
from benchmarks.peers.process import PeerAbsent
from benchmarks.race import Contender
from benchmarks.tables import Row
from npllm.interop import gguf
from npllm.model import GPT
from npllm.tokenizer import Tokenizer

READER = Contender("llama.cpp", "llama_cpp_reader", {})
EXACT = "f32"
TOLERANCE = 1e-3  # of a logit; and what rounding adds, as shares of the largest logit:
ROUNDING = {"f32": 0.0, "f16": 3e-3, "q8_0": 6e-2}
GELU_TABLE = 5e-4


def measure() -> list[Row]:
    """Return a row for each family and type of file."""
    rows = []
    for name in parity.FAMILIES:
        model, tokenizer = parity.example(name)
        for outtype in get_args(gguf.OutType):
            with tempfile.TemporaryDirectory() as folder:
                row = compared(model, tokenizer, Path(folder), outtype)
            rows.append({"reader": READER.name, "family": f"{name}, {outtype}", **row})
    return rows


def compared(model: GPT, tokenizer: Tokenizer, folder: Path, outtype: gguf.OutType) -> Row:
    """Return what llama.cpp makes of a model, compared with what we do."""
    gguf.save(model, tokenizer, folder / "ours", outtype)
    path = folder / "ours" / gguf.file_name(outtype)
    try:
        with READER.start() as worker:
            theirs = worker.set_up("read", path=str(path), **parity.questions(model))
    except PeerAbsent as error:
        return {"failure": str(error)}
    row = parity.answers(theirs, model, tokenizer)
    share = ROUNDING[outtype] + (GELU_TABLE if model.config.mlp == "gelu" else 0.0)
    row["tolerance"] = TOLERANCE + share * row["largest_logit"]
    if outtype != EXACT:
        del row["same_text"]  # rounded weights may prefer another token
    return row
