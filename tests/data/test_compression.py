"""Bits per byte of the compressors that the model is measured against."""

import numpy as np
import pytest

from npllm.data.compression import bits_per_byte_of_compressors
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
