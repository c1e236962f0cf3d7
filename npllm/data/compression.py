"""What ordinary compressors need for the same text.

A language model is a compressor: its loss in bits per byte is the length of the text, coded with its predictions,
divided by the length of the text (Shannon, "Prediction and entropy of printed English", 1951). gzip, bzip2 and xz find
repeated strings and letter frequencies without any learning beforehand, so their figures say how much of the model's
figure is more than that. Each compressor sees the validation text alone and starts from nothing.
"""

import bz2
import gzip
import lzma

from npllm.errors import DataError

XZ_WINDOW = 64 << 20  # bytes: how far back `xz -9` looks for repeats
LEAST_XZ_WINDOW = 4096


def bits_per_byte_of_compressors(data: bytes) -> dict[str, float]:
    """Bits of compressed output per byte of input, at each program's best level (-9). Keys: gzip, bz2, xz.

    Raises DataError for empty data, which has no such ratio.
    """
    if not data:
        raise DataError("the validation text is empty, so it has no compression ratio: give more text.")
    compressed = {
        "gzip": gzip.compress(data, compresslevel=9, mtime=0),
        "bz2": bz2.compress(data, compresslevel=9),
        "xz": lzma.compress(data, filters=[_xz_filter(len(data))]),
    }
    return {name: 8 * len(output) / len(data) for name, output in compressed.items()}


def _xz_filter(n_bytes: int) -> dict[str, int]:
    """That of `xz -9`, with a window no longer than the data. The output is as long, and the memory is 12 times the
    data's: a window of 64 MiB takes 60 MB before it holds anything."""
    window = min(max(n_bytes, LEAST_XZ_WINDOW), XZ_WINDOW)
    return {"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": window}
