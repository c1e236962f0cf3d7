"""`npllm verify` of a sound run, and of copies in which one file is changed."""

import json
import shutil
import sys
from math import isnan

import h5py
import pytest
from checkpoint_files import reseal
from small_runs import checkpoints, pretrain_arguments, refused, run, stop_after, write_text

from npllm.runs.metrics import append_metrics, drop_metrics_after, read_metrics

FILES = [
    "tokenizer.json",
    "data/train.h5",
    "data/val.h5",
    "checkpoints/step-00000000.h5",
    "checkpoints/step-00000006.h5",
    "metrics.csv",
    "summary.json",
]


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verify")
    assert run(*pretrain_arguments(write_text(folder), folder / "run")) == 0
    return folder / "run"


@pytest.fixture
def copy(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "run")


def test_a_sound_run_is_found_sound(sound, capsys):
    assert run("verify", sound) == 0
    lines = capsys.readouterr().out.splitlines()
    names = {"config.toml", "checkpoints/manifest.json", "metrics.jsonl", "samples.jsonl", *FILES}
    assert {line.split()[1] for line in lines} == names
    assert all(line.startswith("ok ") for line in lines)


def changed(path):
    """The content of the file with one change that has a meaning."""
    content = path.read_bytes()
    if path.name == "tokenizer.json":
        return content.replace(b'"a"', b'"A"')
    if path.name == "summary.json":
        return content.replace(b'sha256": "', b'sha256": "0')
    if path.name == "metrics.csv":
        return content.replace(b"\n1,", b"\n2,")
    with h5py.File(path) as file:
        at = file["params" if "params" in file else "tokens"].id.get_offset() + 5
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize("name", FILES)
def test_a_changed_file_is_named(copy, capsys, name):
    (copy / name).write_bytes(changed(copy / name))
    capsys.readouterr()
    assert run("verify", copy) == 3
    bad = [line.split()[1].rstrip(":") for line in capsys.readouterr().out.splitlines() if not line.startswith("ok ")]
    assert name in bad or name == "tokenizer.json"  # another tokenizer is sound, but the shards belong to the old one
    belongs = {"tokenizer.json": {"data/train.h5", "data/val.h5"}, FILES[4]: {FILES[4], "summary.json"}}
    assert set(bad) == belongs.get(name, {name})


def test_what_is_damaged_stands_in_its_own_line(copy, capsys):
    newest = checkpoints(copy)[-1]
    newest.write_bytes(newest.read_bytes()[:-1])
    capsys.readouterr()
    assert run("verify", copy) == 3
    printed = capsys.readouterr()
    bad = [line for line in printed.out.splitlines() if not line.startswith("ok ")]
    assert len(bad) == 2, "the checkpoint, and the summary that is checked against it"
    assert bad[0].startswith(f"damaged  checkpoints/{newest.name}: {newest} is not a whole checkpoint (its SHA-256")
    assert printed.err == f"npllm: {copy} has 2 damaged of 11 files; do what the line of each one says.\n"


def test_a_manifest_that_lists_what_is_not_there(copy, capsys):
    checkpoints(copy)[0].unlink()
    assert run("verify", copy) == 3
    assert "manifest.json lists step-00000000.h5, which is missing" in capsys.readouterr().out
    manifest = copy / "checkpoints" / "manifest.json"
    document = json.loads(manifest.read_text())
    document["version"] = 9
    manifest.write_text(json.dumps(document))
    assert run("verify", copy) == 3
    assert "manifest.json is damaged (it has version 9)" in capsys.readouterr().out


@pytest.mark.usefixtures("quick")
def test_the_summary_of_a_run_that_goes_on_beyond_its_end(copy, capsys, monkeypatch):
    """After `train.steps` is raised, the summary describes older weights and is sound.

    That holds until the new end. A damaged summary is found then too.
    """
    config = copy / "config.toml"
    config.write_text(config.read_text().replace("steps = 6\n", "steps = 12\n"))
    assert run("verify", copy) == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 8)
        assert run("resume", copy) == 130
    assert run("verify", copy) == 0
    assert run("resume", copy) == 0
    assert run("verify", copy) == 0
    (copy / "summary.json").write_bytes(changed(copy / "summary.json"))
    capsys.readouterr()
    assert run("verify", copy) == 3
    assert "summary.json describes other weights than step-00000012.h5" in capsys.readouterr().out


def test_what_is_no_run(tmp_path, capsys):
    assert "is not a run" in refused(capsys, "verify", tmp_path, exit_code=3)


def edit_line(path, number, changes):
    """Change fields of a line of JSON; a value `...` removes the field."""
    lines = path.read_text().splitlines()
    record = json.loads(lines[number - 1]) | changes
    lines[number - 1] = json.dumps({name: value for name, value in record.items() if value is not ...})
    path.write_text("\n".join(lines) + "\n")


SPIKE = {"event": "left_out", "time": "", "step": 2, "loss": 1.0, "grad_norm": 1.0, "tokens": 8, "samples": [0, 4]}
WRONG_VALUES = [
    ("metrics.jsonl", {"loss": "x"}, 'loss is "x"'),
    ("metrics.jsonl", {"loss": True}, "loss is true"),
    ("metrics.jsonl", {"loss": ...}, "loss is missing"),
    ("metrics.jsonl", {"loss": float("nan")}, "NaN is not a number"),
    ("metrics.jsonl", {"step": 1.0}, "step is 1.0"),
    ("metrics.jsonl", {"step": 10**400}, "step is 1000"),
    ("metrics.jsonl", {"tokens": "8"}, 'tokens is "8"'),
    ("metrics.jsonl", {"val_loss": [1]}, "val_loss is [1]"),
    ("ledger.jsonl", {"event": "party"}, 'event is "party"'),
    ("ledger.jsonl", {"step": True}, "step is true"),
    ("ledger.jsonl", {"loss": None}, "loss is null"),
    ("ledger.jsonl", {"reason": ...}, "reason is missing"),
    ("ledger.jsonl", {"samples": [4, 0]}, "samples is [4, 0]"),
]


@pytest.mark.parametrize(("name", "changes", "complaint"), WRONG_VALUES)
def test_a_wrong_value_in_a_log_is_named_with_its_line(copy, capsys, name, changes, complaint):
    """By `verify`, and by `resume` in place of a traceback."""
    if name == "ledger.jsonl":
        (copy / name).write_text(json.dumps(SPIKE | {"reason": "high loss"}) + "\n")
        assert run("verify", copy) == 0
    edit_line(copy / name, 1, changes)
    capsys.readouterr()
    assert run("verify", copy) == 3
    bad = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("ok ")]
    assert len(bad) == 1
    for message in (bad[0], refused(capsys, "resume", copy, exit_code=3)):
        assert f"{name}, line 1, is not" in message
        assert complaint in message


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [({"steps": "6"}, 'steps is "6"'), ({"steps": True}, "steps is true"), ({"params_sha256": ...}, "is missing")],
)
def test_a_wrong_value_in_the_summary_is_named(copy, capsys, changes, complaint):
    record = json.loads((copy / "summary.json").read_text()) | changes
    (copy / "summary.json").write_text(json.dumps({name: value for name, value in record.items() if value is not ...}))
    capsys.readouterr()
    assert run("verify", copy) == 3
    out = capsys.readouterr().out
    assert "is not the summary of a run (" in out
    assert complaint in out


def test_a_loss_that_is_not_finite_is_recorded_as_null(tmp_path):
    """NaN is no JSON: `verify` and `resume` would refuse the file that the run itself
    wrote."""
    path = tmp_path / "metrics.jsonl"
    append_metrics(path, {"step": 1, "tokens": 8, "loss": float("nan"), "grad_norm": float("inf")})
    assert json.loads(path.read_text()) == {"step": 1, "tokens": 8, "loss": None, "grad_norm": None}
    drop_metrics_after(path, 1)
    (record,) = read_metrics(path)
    assert all(isnan(record[name]) for name in ("loss", "grad_norm"))


@pytest.mark.parametrize("value", [True, 8.0, 10**4000, "8", None, [8]])
@pytest.mark.parametrize("field", ["n_embd", "n_layer", "vocab_size"])
def test_a_sealed_checkpoint_with_a_wrong_number_is_refused(copy, capsys, field, value):
    """Its hash is right; `true` was one layer, and 8.0 a shape that NumPy refused."""

    def change(description, _):
        description["model"][field] = value

    (copy / "checkpoints" / "manifest.json").unlink()
    sys.set_int_max_str_digits(0)
    reseal(checkpoints(copy)[-1], change)
    sys.set_int_max_str_digits(sys.int_info.default_max_str_digits)
    message = refused(capsys, "generate", copy, "--max-tokens", 1, exit_code=3)
    assert f"describes no model that can be built ({field} is " in message
    assert run("verify", copy) == 3
    assert f"({field} is " in capsys.readouterr().out
