"""`npllm predict`: a classifier says which class a text has, and how sure it is."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console

from npllm.data.fitting import lacking_characters
from npllm.data.records import read_labelled, scan_texts
from npllm.data.result_table import check_destination, write_table
from npllm.errors import ConfigError, DataError
from npllm.finetuning.classifier import Pool, logits_of_texts
from npllm.finetuning.classify_config import ClassifyConfig
from npllm.finetuning.labels import classes_of
from npllm.model import GPT
from npllm.runs.inputs import checked_records
from npllm.runs.run_folder import load, run_of
from npllm.tokenizer import Tokenizer
from npllm.training.stage import load_run_config

DECIMALS = 6  # of a probability in a file


class Prediction(NamedTuple):
    """The likeliest class of a text, and its probability."""

    label: str
    probability: float


class Classifier:
    """A trained classifier. classes: their names, sorted."""

    def __init__(self, model: GPT, tokenizer: Tokenizer, classes: Sequence[str], pool: Pool):
        self.model, self.tokenizer, self.classes, self.pool = model, tokenizer, list(classes), pool

    @classmethod
    def load(cls, path: str | Path) -> "Classifier":
        """Return the classifier of a run of `npllm classify`, or of a checkpoint in it.

        Raises ConfigError for a run of another stage, and DataError for files that are
        missing or damaged.
        """
        model, tokenizer = load(path)
        if model.config.n_outputs < 2:
            kind = "a reward model" if model.config.n_outputs else "a language model"
            raise ConfigError(f"{path} is {kind}, which knows no classes; name a run of npllm classify.")
        run = run_of(path)
        classes = classes_of(read_labelled(checked_records(run, "train")))
        return cls(model, tokenizer, classes, load_run_config(run, ClassifyConfig).classify.pool)

    def predict(self, texts: Sequence[str], console: Console | None = None) -> list[Prediction]:
        """Return the prediction for each text. Raises what `probabilities` raises."""
        p = self.probabilities(texts, console)
        return [Prediction(self.classes[best], float(row[best])) for best, row in zip(p.argmax(axis=1), p, strict=True)]

    def probabilities(self, texts: Sequence[str], console: Console | None = None) -> np.ndarray:
        """Return the probability of each class, (texts, classes) float64.

        Rows are in the order of the texts, columns in that of `classes`. Of a text with
        more than block_size tokens only the end is read, as in training.

        console: shows how much is done; None = nothing is shown. Raises DataError for
        an empty text and for one that the tokenizer cannot encode.
        """
        tokens = [np.array(self.tokenizer.encode(text), np.int32)[-self.model.config.block_size :] for text in texts]
        for number, ids in enumerate(tokens, 1):
            if not len(ids):
                raise DataError(f"Text {number} is empty; leave it out.")
        p = np.empty((len(tokens), len(self.classes)))
        if tokens:
            for numbers, logits in logits_of_texts(self.model, tokens, self.pool, "classifying", console):
                shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
                p[numbers] = shifted / shifted.sum(axis=1, keepdims=True)
        return p


def predict_file(path: Path, data: Path, out: Path | None, console: Console) -> None:
    """Classify the texts of a file, and write a table: label, probability, text.

    path: of the run or checkpoint. data: as in `scan_texts`. out: as in `write_table`.
    Nothing is written unless every text can be classified. Raises DataError that lists
    the texts that cannot be, and the errors of `Classifier.load` and
    `check_destination`.
    """
    check_destination(out, data)
    classifier = Classifier.load(path)

    def encodable(text: str) -> str:
        with lacking_characters():
            classifier.tokenizer.encode(text)
        return text

    texts = scan_texts(data).map(encodable).checked()
    rows = [
        (found.label, round(found.probability, DECIMALS), text)
        for found, text in zip(classifier.predict(texts, console if out else None), texts, strict=True)
    ]
    write_table(out, ("label", "probability", "text"), rows)
