"""From a text to a model that writes, in plain Python, as README.md shows it."""

import re
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np

import npllm

PAGE = Path(__file__).parent.parent / "README.md"


def test_text_to_model_in_twenty_lines(tmp_path, monkeypatch, capsys):
    """Fails if a name is missing, if the loop does not learn, or if what is loaded is
    not what was trained."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("\n".join(topics.values())[:40_000], encoding="utf-8")
    names = {}
    (program,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    exec(program, names)
    assert len(program.strip().splitlines()) <= 20
    assert names["loss"] < np.log(512) - 1.5
    assert abs(names["model"].loss(names["x"], names["y"]) - names["loss"]) < 0.2
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith(
        "GPT(2 layers, width 64, 4 heads, block 32, vocabulary 512, learned, layernorm, gelu; "
    )
    assert "".join(printed[1:])


def test_the_batches_of_an_epoch_hold_each_target_once():
    tokens = np.arange(1000)
    drawn = npllm.batches(tokens.tolist(), block_size=7, rows=4, seed=5)
    x, y = next(drawn)
    assert x.shape == y.shape == (4, 7)
    assert x.dtype == y.dtype == np.int32
    np.testing.assert_array_equal(y, x + 1)
    targets = np.concatenate([y, *(next(drawn)[1] for _ in range(30))]).ravel()
    assert len(np.unique(targets)) == len(targets)
    again = npllm.batches(tokens, block_size=7, rows=4, seed=5)
    np.testing.assert_array_equal(next(again)[0], x)
