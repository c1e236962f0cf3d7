"""What a run says of its speed."""

import re

from small_runs import pretrain_arguments, run, write_text

from npllm.training import train
from npllm.training.metrics import read_metrics


def test_a_share_of_the_peak_is_never_above_it(tmp_path, capsys, monkeypatch, quick):
    """As where other work held the machine up while its peak was measured."""
    monkeypatch.setattr(train, "matmul_peak", lambda dtype: 1.0)
    assert run(*pretrain_arguments(write_text(tmp_path), tmp_path / "run")) == 0
    shares = [record["mfu"] for record in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert shares[0] == 1.0
    assert 0 < min(shares) <= max(shares) <= 1.0
    shown = [int(percent) for percent in re.findall(r"(\d+) % of peak", capsys.readouterr().out)]
    assert shown
    assert max(shown) <= 100
