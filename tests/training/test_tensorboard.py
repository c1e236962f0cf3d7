"""--train.log tensorboard: what the event files hold, also after a stop."""

import struct

import pytest
from small_runs import pretrain_arguments, refused, run, stop_after, write_text

from npllm.training import tensorboard


def scalars(folder) -> dict[tuple[str, int], float]:
    """(name, step) -> value of all event files, the files in the order of their names.

    A file that starts at a step replaces what earlier files hold from there on, as in
    TensorBoard.
    """
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    found: dict[tuple[str, int], float] = {}
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            if event.session_log.status == SessionLog.START:
                found = {key: value for key, value in found.items() if key[1] < event.step}
            found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
    return found


def test_each_step_is_logged_once_also_after_a_stop(tmp_path, monkeypatch):
    """A resumed run would otherwise show steps twice, or lose those before the stop."""
    pytest.importorskip("tensorboardX")
    stop_after(monkeypatch, 3)
    out = tmp_path / "run"
    assert run(*pretrain_arguments(write_text(tmp_path), out, train__log="tensorboard")) == 130
    assert run("resume", out) == 0
    logged = scalars(out / "tensorboard")
    assert [step for name, step in sorted(logged) if name == "loss"] == [1, 2, 3, 4, 5, 6]
    assert {"loss", "grad_norm", "lr", "val_loss"} <= {name for name, _ in logged}
    assert run("verify", out) == 0


def test_a_missing_package_is_said_before_any_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tensorboard, "find_spec", lambda name: None)
    arguments = pretrain_arguments(write_text(tmp_path), tmp_path / "run", train__log="tensorboard")
    message = refused(capsys, *arguments, exit_code=2)
    assert "needs the package tensorboardX; install it (pip install 'npllm[log]'), or leave train.log out." in message
    assert not (tmp_path / "run").exists()


def test_without_the_option_the_package_is_not_imported(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorboard, "import_module", None)
    with tensorboard.EventLog(tmp_path / "events", None, 0) as log:
        log.go_back(0)
        log.append({"step": 1, "loss": 1.0})
    assert not (tmp_path / "events").exists()
