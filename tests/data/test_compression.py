"""Bits per byte of the compressors that the model is compared with."""

import lzma

import numpy as np
import pytest

from npllm.data.compression import LEAST_XZ_WINDOW, XZ_WINDOW, bits_per_byte_of_compressors
from npllm.errors import DataError


def test_random_bytes_need_eight_bits_and_repeats_almost_none():
    noise = np.random.default_rng(0).bytes(20_000)
    for name, bits in bits_per_byte_of_compressors(noise).items():
        assert 8.0 < bits < 8.2, name
    repeated = bits_per_byte_of_compressors(b"abcd" * 5_000)
    assert set(repeated) == {"gzip", "bz2", "xz"}
    assert all(0 < bits < 0.1 for bits in repeated.values())


def test_empty_data_has_no_ratio():
    with pytest.raises(DataError, match="empty"):
        bits_per_byte_of_compressors(b"")


@pytest.mark.parametrize(("length", "window"), [(100, LEAST_XZ_WINDOW), (50_000, 50_000)])
def test_xz_looks_as_far_back_as_the_data_goes_and_packs_as_tightly_as_at_level_9(monkeypatch, length, window):
    data = np.random.default_rng(0).bytes(length // 2) * 2  # the second half repeats the first
    whole_window, windows, compress = len(lzma.compress(data, preset=9)), [], lzma.compress

    def watched(text, *, filters):
        windows.append(filters[0]["dict_size"])
        return compress(text, filters=filters)

    monkeypatch.setattr(lzma, "compress", watched)
    assert bits_per_byte_of_compressors(data)["xz"] == 8 * whole_window / length
    assert windows == [window]
    assert window <= XZ_WINDOW
