"""SIGINT, SIGTERM and SIGHUP at the worst moments, sent within this process.

The run is saved at the end of the step, and resumed it ends with the same bits.
"""

import signal

import proofs
import pytest
from reliability import small_training
from reliability.small_training import CONFIG, assert_same_bits, clean_state, make_run, train_on

from npllm.errors import Interrupted
from npllm.runs.checkpoint_store import CheckpointStore
from npllm.training import interrupts
from npllm.training.loop import NextTokenGradients

PLACES = ("mid-step", "mid-save", "mid-eval")


class Presser:
    """Raises signals during the step, save or evaluation number `when`."""

    def __init__(self, monkeypatch, place, when, signals):
        self.remaining, self.signals = when, signals
        hooks = {"mid-step": NextTokenGradients, "mid-save": CheckpointStore, "mid-eval": small_training}
        names = {"mid-step": "__call__", "mid-save": "_write", "mid-eval": "quick_loss"}
        real = getattr(hooks[place], names[place])

        def pressed(*arguments):
            self.remaining -= 1
            if self.remaining == 0:
                for number in self.signals:
                    signal.raise_signal(number)
            return real(*arguments)

        monkeypatch.setattr(hooks[place], names[place], pressed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("place", PLACES)
def test_11_one_signal_saves_at_the_next_edge(tmp_path, monkeypatch, place, number):
    run = make_run(tmp_path / "run")
    with monkeypatch.context() as patch:
        Presser(patch, place, 3, [number])
        with pytest.raises(
            Interrupted, match=r"Stopped and saved after step (\d+); go on with: npllm resume"
        ) as caught:
            train_on(run, CONFIG)
    assert caught.value.exit_code == 130
    done = len(run.metrics.read_text().splitlines())
    assert f"after step {done};" in str(caught.value)
    assert done < CONFIG.train.steps
    assert max(CheckpointStore(run.checkpoints, keep=2, every=4).entries) == done
    assert_same_bits(train_on(run, CONFIG), clean_state(CONFIG))
    proofs.count(proofs.FAULTS)


def test_11_a_signal_that_comes_three_times_is_one_request(tmp_path, monkeypatch):
    """As when a system ends all processes of a job, and mpiexec passes its own on."""
    run = make_run(tmp_path / "run")
    Presser(monkeypatch, "mid-step", 3, [signal.SIGTERM] * 3)
    with pytest.raises(Interrupted, match="Stopped and saved after step 3;"):
        train_on(run, CONFIG)
    proofs.count(proofs.FAULTS)


@pytest.mark.parametrize("place", ["mid-step", "mid-eval"])
def test_11_the_second_sigint_leaves_at_once(tmp_path, monkeypatch, place):
    """The second SIGINT ends the run without a new checkpoint; older ones are whole."""
    run = make_run(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(interrupts, "ONE_REQUEST", -1.0)  # however quick, it is a second one
        presser = Presser(patch, place, 3, [signal.SIGINT, signal.SIGINT])
        with pytest.raises(KeyboardInterrupt):
            train_on(run, CONFIG)
        assert presser.remaining == 0, "nothing was begun after it"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert_same_bits(train_on(run, CONFIG), clean_state(CONFIG))
    proofs.count(proofs.FAULTS)


def test_13_stopped_at_every_step_in_one_chain(tmp_path, monkeypatch):
    """The run is stopped nineteen times in a row, each time after one more step."""
    run = make_run(tmp_path / "run")
    for step in range(1, CONFIG.train.steps):
        with monkeypatch.context() as patch:
            Presser(patch, "mid-step", 1, [signal.SIGTERM])
            with pytest.raises(Interrupted, match=f"after step {step};"):
                train_on(run, CONFIG)
    state = train_on(run, CONFIG)
    assert_same_bits(state, clean_state(CONFIG))
    proofs.count(proofs.FAULTS, CONFIG.train.steps - 1)
