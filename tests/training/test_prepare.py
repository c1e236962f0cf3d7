"""From text to shards: how much memory that takes beside the text."""

import tracemalloc

import pytest

from npllm.tokenizer import train_bpe
from npllm.training.config import DataConfig
from npllm.training.prepare import prepare_data
from npllm.training.run_folder import RunFolder


@pytest.mark.parametrize("kind", ["char", "byte"])
def test_a_text_is_prepared_in_ten_times_its_size(tmp_path, kind):
    """The text, its two parts, four bytes a token and two; not one array of eight bytes after the other."""
    n_bytes = 4 << 20
    path = tmp_path / "text.txt"
    path.write_bytes(b"sixteen letters\n" * (n_bytes // 16))
    run = RunFolder(tmp_path / "run")
    run.train_shard.parent.mkdir(parents=True)
    tracemalloc.start()
    prepare_data(DataConfig(source=(str(path),), tokenizer=kind), run, lambda line: None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * n_bytes


def test_pieces_are_not_kept_while_a_text_is_encoded():
    """A list of all pieces would take four times as much as their tokens, and more."""
    tokenizer = train_bpe(["a b " * 10], 258)
    text = "a b " * 150_000
    tokenizer.encode_documents([text[:100]])
    tracemalloc.start()
    (ids,) = tokenizer.encode_documents([text])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * ids.nbytes
