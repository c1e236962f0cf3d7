"""The class of every code point, in the words of the split patterns.

The table is made by `regex`, the module that also defines the splits. So letters,
numbers and white space are those of the same version of Unicode.
"""

from functools import cache

import numpy as np
import regex

from npllm.tokenizer.kernels.scan import LETTER, NEWLINE, NUMBER, SPACE

PATTERNS = {r"\p{L}+": LETTER, r"\p{N}+": NUMBER, r"\s+": SPACE, r"[\r\n]+": NEWLINE}
SURROGATES = 0xD800, 0xE000  # valid text has none of these
N_CODE_POINTS = 0x110000


@cache
def code_point_classes() -> np.ndarray:
    """Return code point -> class, (1114112,) uint8; OTHER where no pattern matches."""
    classes = np.zeros(N_CODE_POINTS, np.uint8)
    every = np.arange(N_CODE_POINTS, dtype="<u4")
    every[slice(*SURROGATES)] = 0
    text = every.tobytes().decode("utf-32-le")
    for pattern, kind in PATTERNS.items():
        for match in regex.finditer(pattern, text):
            classes[slice(*match.span())] = kind
    return classes
