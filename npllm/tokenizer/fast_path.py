"""When a text is long enough for the compiled loops.

The compiled loops are many times as fast as the plain ones and give the same results.
But Numba takes a second to load, and several seconds to compile where no earlier
process has kept the kernels. So a process starts with the plain loops, and changes when
these have taken about as long as that.
"""

from dataclasses import dataclass
from math import inf

from npllm.tokenizer.pretokenize import CL100K_SPLIT, GPT2_SPLIT

SHORT_TEXT = 1 << 10  # characters; the plain loops have split it before a kernel has been called
WORTH_LOADING = 1 << 20
WORTH_COMPILING = 1 << 22


@dataclass
class Progress:
    """What a process has split, and when it changes to the compiled loops."""

    characters: int = 0
    changes_at: float = WORTH_LOADING
    has_looked: bool = False  # whether an earlier process has kept the kernels


_process = Progress()


def pays(n_characters: int, pattern: str) -> bool:
    """Return whether to use compiled loops for a text of so many characters.

    pattern: the regular expression that splits it; those of pretokenize.SPLITS have
    kernels.
    """
    if n_characters < SHORT_TEXT or pattern not in (GPT2_SPLIT, CL100K_SPLIT):
        return False
    if _process.characters < _process.changes_at:
        _process.characters += n_characters
        if _process.characters >= _process.changes_at and not _process.has_looked:
            _process.changes_at, _process.has_looked = _worth_changing(), True
    return _process.characters >= _process.changes_at


def _worth_changing() -> float:
    from numba import config

    from npllm.kernels.compiled_cache import is_lacking
    from npllm.tokenizer.kernels.encoding import encode_pieces
    from npllm.tokenizer.kernels.learning import learn

    if config.DISABLE_JIT:
        return inf
    return WORTH_COMPILING if is_lacking(encode_pieces) or is_lacking(learn) else WORTH_LOADING


def load_kernels() -> None:
    """Call every kernel, so that all are compiled and kept."""
    from npllm.tokenizer.bpe_encoding import BytePairEncoder
    from npllm.tokenizer.fast_training import CompiledCounter, learn_merges_compiled
    from npllm.tokenizer.training import byte_tokenizer

    counter = CompiledCounter(GPT2_SPLIT)
    counter.count(b"a text")
    learn_merges_compiled(counter.counts(), 1)
    BytePairEncoder(byte_tokenizer().vocabulary).compiled.encode(b"a text")


def split_number(pattern: str) -> int:
    """Return the number by which the kernels know a split."""
    from npllm.tokenizer.kernels.scan import CL100K, GPT2

    return {GPT2_SPLIT: GPT2, CL100K_SPLIT: CL100K}[pattern]
