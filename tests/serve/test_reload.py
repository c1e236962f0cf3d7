"""A run that still trains: newer checkpoints answer, and texts keep their weights."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shutil import copytree

import pytest
from serve.serving import braked, serving
from small_runs import PATIENCE, checkpoints
from stage_runs import pretrained

import npllm
from npllm.interop import huggingface
from npllm.runs.checkpoint_store import MANIFEST

TEXT = {"prompt": "the cat", "max_tokens": 20, "seed": 1, "logprobs": 1}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with checkpoints after 4 and after 8 steps."""
    settings = {"train__steps": 8, "train__checkpoint_every": 4, "optim__lr": 0.03}
    return pretrained(tmp_path_factory.mktemp("trains"), **settings)


class Training:
    """A run whose second checkpoint has not been written yet."""

    def __init__(self, run: Path):
        self.run = run
        self.manifest = run / "checkpoints" / MANIFEST
        *_, self.second = checkpoints(run)
        self.newer = self.second.read_bytes()
        self.listed = json.loads(self.manifest.read_text())
        self.second.unlink()
        del self.listed["checkpoints"][self.second.name]
        older = json.dumps(self.listed)
        self.listed = self.manifest.read_text()
        self.manifest.write_text(older)

    def goes_on(self, checkpoint: bytes | None = None) -> None:
        """Write the second checkpoint, then the manifest."""
        self.second.write_bytes(self.newer if checkpoint is None else checkpoint)
        self.manifest.write_text(self.listed)


@pytest.fixture
def training(trained, tmp_path):
    return Training(copytree(trained, tmp_path / "run"))


def step_of(server) -> int:
    return server.ask("/v1/models")[1]["data"][0]["step"]


def test_the_next_request_is_answered_by_the_newest_weights(training):
    with serving(training.run) as server:
        assert step_of(server) == 4
        before = server.complete(**TEXT)
        training.goes_on()
        after = server.complete(**TEXT)
        assert step_of(server) == 8
        assert after == server.complete(**TEXT) | {name: after[name] for name in ("id", "created")}
    with serving(training.run) as started_anew:
        again = started_anew.complete(**TEXT)
    assert after["choices"] == again["choices"] != before["choices"]
    assert after["system_fingerprint"] == again["system_fingerprint"] != before["system_fingerprint"]


def test_a_text_goes_on_with_the_weights_that_it_began_with(training):
    with serving(training.run) as server:
        expected = server.complete(**TEXT)["choices"]
        with ThreadPoolExecutor(1) as pool, braked(server, at=5) as brake:
            text = pool.submit(server.complete, **TEXT)
            assert brake.held.wait(PATIENCE)
            training.goes_on()
            assert step_of(server) == 8
            brake.released.set()
            assert server.complete(**TEXT)["choices"] != expected
            assert text.result()["choices"] == expected


def test_a_damaged_newer_checkpoint_is_not_used(training):
    with serving(training.run) as server:
        before = server.complete(**TEXT)["choices"]
        training.goes_on(training.newer[:-1])
        assert server.complete(**TEXT)["choices"] == before
        assert step_of(server) == 4
        assert sum("The newest checkpoint is not used" in line for line in server.log) == 1
        training.manifest.unlink()
        training.goes_on()
        assert step_of(server) == 8


def test_a_chosen_checkpoint_stays(training):
    with serving(training.run / "checkpoints" / "step-00000004.h5") as server:
        training.goes_on()
        assert step_of(server) == 4


def test_saved_models_are_served(base, tmp_path):
    """A folder that npllm.save wrote, and one of Hugging Face: both give the texts of
    the run."""
    model, tokenizer = npllm.load(base)
    npllm.save(model, tokenizer, tmp_path / "saved")
    huggingface.save(model, tokenizer, tmp_path / "hf")
    with serving(base) as server:
        expected = server.complete(**TEXT)["choices"][0]["text"]
    for name in ("saved", "hf"):
        with serving(tmp_path / name) as server:
            answer = server.complete(**TEXT)
            assert (answer["model"], answer["choices"][0]["text"]) == (name, expected)
            assert step_of(server) is None
