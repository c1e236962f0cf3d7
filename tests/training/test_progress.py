"""What a run prints about its speed."""

import re
from dataclasses import replace

from small_runs import pretrain_arguments, run, write_text

from npllm.runs.metrics import read_metrics
from npllm.training import train


def test_a_share_of_the_peak_is_never_above_it(tmp_path, capsys, monkeypatch, quick):
    """The measured peak is too low, as if other work had slowed the machine down.

    Each update but the last is faster than all before it, so it is the peak itself. Its
    share is 1, however its seconds are rounded. The last update takes twice as long.
    """
    seconds = [0.1 / n for n in range(3, 42)]
    seconds.append(2 * seconds[-1])
    made = train.updates
    monkeypatch.setattr(
        train, "updates", lambda *how: (replace(each, seconds=seconds[each.step - 1]) for each in made(*how))
    )
    monkeypatch.setattr(train, "matmul_peak", lambda dtype: 1.0)
    assert run(*pretrain_arguments(write_text(tmp_path), tmp_path / "run", train__steps=40)) == 0
    shares = [record["mfu"] for record in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert shares == [1.0] * 39 + [0.5]
    shown = [int(percent) for percent in re.findall(r"(\d+) % of peak", capsys.readouterr().out)]
    assert len(shown) == 10
    assert max(shown) <= 100
