"""SHA256SUMS: a line that is none is named by its number."""

import pytest

from npllm.errors import DataError
from npllm.runs.checksums import NAME, check_list, write_checksums


@pytest.mark.parametrize("line", ["", "nonsense", "0" * 64, "g" * 64 + "  train.jsonl", "0" * 64 + " train.jsonl"])
def test_a_line_that_is_no_hash_and_name_is_named(tmp_path, line):
    (tmp_path / "train.jsonl").write_text("{}\n")
    write_checksums(tmp_path)
    check_list(tmp_path / NAME)
    with (tmp_path / NAME).open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(DataError, match=f"{NAME}, line 2, is not a hash and a name; put back the file of the run"):
        check_list(tmp_path / NAME)
