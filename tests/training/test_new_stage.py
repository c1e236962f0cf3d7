"""A stage is one file and one line. It has a verb, help, `resume` and `verify`."""

import pytest
from small_runs import content, run, state_digests, summary

from npllm.training import train
from npllm.training.stages import STAGES, Registered

OPTIONS = ["--text", "a rose is a rose", "--train.steps", "8", "--train.checkpoint_every", "3", "--optim.lr", "0.01"]


@pytest.fixture(autouse=True)
def registered(monkeypatch, quick):
    monkeypatch.setitem(STAGES, "toy", Registered("toy_stage", "Learn a sentence by heart."))


def test_it_trains_is_killed_and_resumes_to_the_same_bits(tmp_path, monkeypatch, capsys):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert run("toy", "--out", straight, *OPTIONS) == 0
    assert "16 bytes by heart" in capsys.readouterr().out
    assert summary(straight)["learnt"]

    def updates(*arguments, real=train.updates):
        for update in real(*arguments):
            if update.step > 5:
                raise SystemExit  # like a killed process: nothing is saved
            yield update

    with monkeypatch.context() as patch:
        patch.setattr(train, "updates", updates)
        with pytest.raises(SystemExit):
            run("toy", "--out", killed, *OPTIONS)
    assert run("resume", killed) == 0
    assert state_digests(killed) == state_digests(straight)
    assert run("verify", killed) == 0


def test_it_is_in_the_list_of_verbs_and_has_help_of_its_own(capsys):
    assert run("--help") == 0
    assert "toy               Learn a sentence by heart." in capsys.readouterr().out
    assert run("toy", "--help") == 0
    shown = " ".join(capsys.readouterr().out.split())
    for words in ("Learn a sentence by heart.", "what is learnt (default: ", "--optim.lr NUMBER"):
        assert words in shown


def test_verify_finds_damage_in_what_it_started_from(tmp_path, capsys):
    out = tmp_path / "run"
    assert run("toy", "--out", out, *OPTIONS) == 0
    before = content(out)
    for name in ("data/train.jsonl", "config.toml"):
        path = out / name
        path.write_text(path.read_text().replace("rose", "nose").replace("[train]", "[train]\nrate = 3"))
        assert run("verify", out) == 3
        assert f"damaged  {name}" in capsys.readouterr().out
        path.write_bytes(before[name])
    assert run("verify", out) == 0
