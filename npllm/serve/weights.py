"""The model that is served. Of a run that still trains, it is always the newest one."""

import hashlib
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path

from npllm.data.prompt_format import PromptFormat
from npllm.errors import NpllmError
from npllm.files.user_path import user_path
from npllm.generation import check_writes
from npllm.interop import huggingface
from npllm.model import GPT
from npllm.runs.checkpoint_choice import choose_checkpoint
from npllm.runs.checkpoint_store import MANIFEST
from npllm.runs.run_folder import checkpoint_of, load, run_of
from npllm.tokenizer import Tokenizer


@dataclass(frozen=True)
class Served:
    """A model that answers.

    step: updates that it was trained for; None = the file does not say. fingerprint:
    equal for equal weights. created: when its file was written, in seconds since 1970.
    """

    model: GPT
    tokenizer: Tokenizer
    step: int | None
    fingerprint: str
    created: int

    @property
    def asked(self) -> PromptFormat:
        """How this model is asked."""
        return PromptFormat(self.tokenizer)

    @property
    def block_size(self) -> int:
        """The most tokens that the model sees."""
        return self.model.config.block_size


class Source:
    """Where the model comes from.

    path: a run, a checkpoint in it, or a folder of a model. name: of the model. A run
    without a chosen checkpoint is looked at before every answer: when its manifest has
    changed, its newest checkpoint is loaded. A text goes on with the weights that it
    began with. At most two models are in memory: while texts of older weights are
    written, no newer weights are loaded.
    """

    def __init__(self, path: Path, checkpoint: str | None = None, report=lambda sentence: None):
        chosen = path if checkpoint is None else choose_checkpoint(path, checkpoint)
        self._report = report
        self._turn = threading.Lock()
        self._path = chosen
        self._manifest: Path | None = None
        folder = user_path(path)
        if (folder / huggingface.CONFIG).is_file():
            self.name = folder.resolve().name
        else:
            run = run_of(chosen)
            self.name = run.path.resolve().name
            if not user_path(chosen).is_file():
                self._manifest = run.checkpoints / MANIFEST
        self._seen = self._signature()
        self._older: weakref.ref[Served] | None = None
        self._now = self._load()
        check_writes(self._now.model, path)

    def current(self) -> Served:
        """Return the newest model. Threads may call this at the same time."""
        with self._turn:
            seen = self._signature()
            if seen != self._seen and (self._older is None or self._older() is None):
                self._seen = seen
                try:
                    newest = self._load()
                except NpllmError as error:
                    self._report(f"The newest checkpoint is not used: {error}")
                else:
                    self._older, self._now = weakref.ref(self._now), newest
            return self._now

    def _signature(self) -> tuple[int, int, int] | None:
        """A value that changes with the manifest; None = there is none."""
        try:
            status = self._manifest.stat() if self._manifest else None
        except OSError:
            return None
        return status and (status.st_ino, status.st_mtime_ns, status.st_size)

    def _load(self) -> Served:
        if (user_path(self._path) / huggingface.CONFIG).is_file():
            model, tokenizer = load(self._path)
            digest = hashlib.sha256(model.params.flat).hexdigest()[:8]
            return Served(
                model, tokenizer, None, f"model-{digest}", _written(user_path(self._path) / huggingface.CONFIG)
            )
        file, _ = checkpoint_of(self._path)
        model, tokenizer = load(file)
        digits = file.stem.removeprefix("step-")
        step = int(digits) if digits.isdecimal() else None
        with file.open("rb") as opened:
            digest = opened.read(8).decode("ascii", "replace")  # `load` has compared it with the file
        return Served(model, tokenizer, step, f"{file.stem}-{digest}", _written(file))


def _written(file: Path) -> int:
    return int(file.stat().st_mtime)
