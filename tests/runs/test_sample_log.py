"""samples.jsonl: what a model wrote at each evaluation."""

import pytest

from npllm.errors import DataError
from npllm.runs.sample_log import Sample, append_sample, drop_samples_after, read_samples


def sample(step: int) -> Sample:
    return Sample(step, "prompt ", f"of the weights {step}\n<script> \ufffd")


def test_samples_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "samples.jsonl"
    assert read_samples(path) == []
    for step in (2, 4):
        append_sample(path, sample(step))
    assert read_samples(path) == [sample(2), sample(4)]


def test_going_back_removes_later_samples_and_a_line_that_was_cut_off(tmp_path):
    path = tmp_path / "samples.jsonl"
    for step in (2, 4, 6):
        append_sample(path, sample(step))
    whole = path.read_bytes()
    with path.open("a") as file:
        file.write('{"step": 8')
    assert len(read_samples(path)) == 3
    drop_samples_after(path, 6)
    assert path.read_bytes() == whole
    drop_samples_after(path, 5)
    assert read_samples(path) == [sample(2), sample(4)]


def test_only_the_last_line_may_be_damaged(tmp_path):
    """Each line was on the disk before the next one was written."""
    path = tmp_path / "samples.jsonl"
    append_sample(path, sample(2))
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0\0\n")
    drop_samples_after(path, 9)
    assert path.read_bytes() == whole
    path.write_bytes(b"\0\n" + whole)
    with pytest.raises(DataError, match="line 1, is not a sample"):
        drop_samples_after(path, 9)


def test_a_run_without_samples_gets_no_file(tmp_path):
    drop_samples_after(tmp_path / "samples.jsonl", 3)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("line", ["nonsense", '{"step": "2", "prompt": "", "text": ""}', '{"step": 2, "text": ""}'])
def test_a_line_that_is_no_sample_is_refused_with_its_number(tmp_path, line):
    path = tmp_path / "samples.jsonl"
    path.write_text('{"step": 1, "prompt": "", "text": ""}\n' + line + "\n")
    with pytest.raises(DataError, match="line 2, is not a sample"):
        read_samples(path)
