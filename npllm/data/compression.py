"""How far ordinary compressors shrink the same text.

A language model is a compressor: its loss in bits per byte is the length of the text,
coded with the model's predictions, divided by the length of the text (Shannon,
"Prediction and entropy of printed English", 1951). gzip, bzip2 and xz find repeated
strings and letter frequencies without training. Their figures say how much of the
model's figure goes beyond that. Each compressor sees only the validation text.
"""

import bz2
import gzip
import lzma

from npllm.errors import DataError

XZ_WINDOW = 64 << 20  # bytes; `xz -9` looks this far back for repeats
LEAST_XZ_WINDOW = 4096


def bits_per_byte_of_compressors(data: bytes) -> dict[str, float]:
    """Return the bits of compressed output per byte of input; keys: gzip, bz2, xz.

    Each program runs at its best level (-9). Raises DataError for empty data, which has
    no such ratio.
    """
    if not data:
        raise DataError("the validation text is empty, so it has no compression ratio; give more text.")
    compressed = {
        "gzip": gzip.compress(data, compresslevel=9, mtime=0),
        "bz2": bz2.compress(data, compresslevel=9),
        "xz": lzma.compress(data, filters=[_xz_filter(len(data))]),
    }
    return {name: 8 * len(output) / len(data) for name, output in compressed.items()}


def _xz_filter(n_bytes: int) -> dict[str, int]:
    """The filter of `xz -9`, with a window no longer than the data.

    The output has the same length. The memory is 12 times the data; a window of 64 MiB
    would take 60 MB even for a short text.
    """
    window = min(max(n_bytes, LEAST_XZ_WINDOW), XZ_WINDOW)
    return {"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": window}
