"""`npllm classify`: a pretrained model becomes a classifier.

A run does two things:

1. It trains a classifier on all training texts and saves it in checkpoints.
2. It measures a learning curve, `curve.jsonl`: the accuracy of many short trainings, on
   few labels and on more. With compare_scratch it measures the same for classifiers
   that start from random weights. See `learning_curve.py`.

Beware with the embedded texts: a model that was pretrained on the standard library has
read the files of the test texts, though not their labels. Part of its advantage is then
that it knows these files.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from tyro.conf import Positional

from npllm.data.fitting import lacking_characters
from npllm.data.records import Labelled, read_labelled, scan_labelled
from npllm.data.topics import stdlib_topics
from npllm.errors import Interrupted
from npllm.files.user_path import user_path
from npllm.finetuning.chosen_records import chosen_records, say_contradictions, say_shared_texts
from npllm.finetuning.classifier import (
    TEXTS_AT_ONCE,
    ClassifierGradients,
    Texts,
    encode_texts,
    evaluate_classifier,
    width_of,
)
from npllm.finetuning.classify_config import ClassifyConfig
from npllm.finetuning.classify_report import report_classify
from npllm.finetuning.labels import capped, check_classes, check_labels, classes_of, split_by_group
from npllm.finetuning.learning_curve import Point, initial_state, planned, read_curve, train_point, write_curve
from npllm.finetuning.stage_run import micro_batch
from npllm.model import GPT
from npllm.output import shell_word
from npllm.runs.inputs import Copies, checked_records, load_model, record_file, trained_checkpoint
from npllm.runs.run_folder import RunFolder
from npllm.tokenizer import Tokenizer
from npllm.training.evaluation import rows_at_once
from npllm.training.interrupts import stop_on_signals
from npllm.training.job import Job
from npllm.training.memory import PLOT, Work, short_training_bytes, spare_buffers
from npllm.training.stage import Figures, Stage

EMBEDDED, EMBEDDED_CLASSES = "stdlib-topics", 4


class Sides(NamedTuple):
    """The texts to train on, and the texts to test on."""

    train: Texts
    test: Texts


def labelled_of(path: Path, tokenizer: Tokenizer, config: ClassifyConfig, console: Console) -> list[Labelled]:
    """Return the labelled texts of a file. A text that cannot be encoded is a bad
    record.

    Prints a line about texts with more than one label, and those of `chosen_records`.
    Raises DataError for bad records, unless classify.on_bad leaves them out.
    """
    file = scan_labelled(path).map(lambda record: _encodable(record, tokenizer))
    records = chosen_records(file, config.classify.on_bad, "classify", console)
    say_contradictions(file, console)
    return records


def _encodable(record: Labelled, tokenizer: Tokenizer) -> Labelled:
    with lacking_characters():
        tokenizer.encode(record.text)
    return record


def classify_inputs(
    config: ClassifyConfig, base: Path, records: Sequence[Labelled], test_records: Sequence[Labelled] | None
) -> Copies:
    """Split and check the texts, and set train.steps. Return the inputs of the run.

    test_records: texts to test on; None = a share of the records is held out.

    Raises DataError if there are fewer than two classes, if a class has too few texts,
    or if the test has a class that the training texts lack.
    """
    checkpoint, tokenizer = trained_checkpoint(base)
    settings, seed = config.classify, config.train.seed
    check_classes(records)
    if test_records is None:
        records, test_records = split_by_group(records, settings.test_fraction, seed)
    check_labels(records, test_records, settings.labels[0])
    if config.train.steps is None:
        config = config.with_steps(config.n_updates(len(records)))
    sides = {"train": records, "test": capped(test_records, settings.test_texts, seed)}
    return Copies(config, tokenizer, {"pretrained": checkpoint}, sides)


@dataclass(kw_only=True)
class ClassifyJob(Job):
    """The training of the run's own classifier, and the inputs of the learning curve.

    base: the pretrained model. classes: their names, sorted.
    """

    base: GPT
    classes: list[str]
    sides: Sides


class Classify(Stage[ClassifyConfig]):
    """Train a classifier, and measure a learning curve."""

    name, config_type = "classify", ClassifyConfig
    models, records = ("pretrained",), ("train", "test")
    first_options = ("classify.labels", "classify.seeds", "classify.epochs", "optim.lr", "train.seed")

    def inputs(
        self,
        config: ClassifyConfig,
        console: Console,
        run: Positional[Path],
        *,
        data: str = EMBEDDED,
        test: Path | None = None,
        compare_scratch: bool = False,
    ) -> Copies:
        """Read and check the model and the texts.

        Args:
            run: folder of the run to start from, or a checkpoint in it
            data: csv, tsv or jsonl with text and label, or lines of a label and a text;
                or stdlib-topics
            test: file of texts to test on;
                none = hold out a share of the data, in whole groups if texts have any
            compare_scratch: short for classify.compare_scratch
        """
        if compare_scratch:
            config = replace(config, classify=replace(config.classify, compare_scratch=True))
        _, tokenizer = trained_checkpoint(run)
        read = functools.partial(labelled_of, tokenizer=tokenizer, config=config, console=console)
        records = stdlib_topics(EMBEDDED_CLASSES) if data == EMBEDDED else read(user_path(data))
        test_records = read(test) if test else None
        if test_records:
            say_shared_texts(records, test_records, console)
        return classify_inputs(config, run, records, test_records)

    def job(self, run: RunFolder, config: ClassifyConfig) -> ClassifyJob:
        """The training of the run's own classifier, on all training texts."""
        base = load_model(run, "pretrained")
        classes, sides = read_sides(run, base)
        state, pool = initial_state(base, config, len(classes)), config.classify.pool
        return ClassifyJob(
            state=state,
            gradients=ClassifierGradients(sides.train, config.classify.aux_lm, pool, config),
            validate=lambda model: evaluate_classifier(model, sides.test, pool).loss,
            work=work_of(config, state.model, sides),
            readers=[base],
            description=(
                f"{len(classes)} classes; {len(sides.train.tokens):,} texts to train on, {len(sides.test.tokens):,} "
                f"to test on; {config.train.steps:,} steps of {config.batch.size} texts, then the learning curve"
            ),
            shown=("accuracy", "lm_loss"),
            base=base,
            classes=classes,
            sides=sides,
        )

    def held_out_figures(self, run: RunFolder, config: ClassifyConfig, model: GPT, console: Console) -> Figures:
        """Loss and accuracy on the test texts."""
        classes, sides = read_sides(run, model)
        result = evaluate_classifier(model, sides.test, config.classify.pool, console)
        return [
            ("loss", f"{result.loss:.4f} nats per text"),
            ("accuracy", f"{result.accuracy:.1%}"),
            ("text", f"{len(sides.test.tokens):,} held-out texts of {len(classes)} classes"),
        ]

    def report(self, run: RunFolder, config: ClassifyConfig, job: ClassifyJob, console: Console) -> str:
        """Finish the learning curve, then write summary.json, a table and a plot."""
        points = finish_curve(run, config, job.base, job.sides, console)
        result = evaluate_classifier(job.state.model, job.sides.test, config.classify.pool, console)
        report_classify(run, job.state, job.classes, result, points, console)
        return f"npllm predict {shell_word(run.path)} --data={shell_word(record_file(run, 'test'))}"


def work_of(config: ClassifyConfig, model: GPT, sides: Sides) -> Work:
    """Return the work of the run, for the estimate of its memory.

    The run's own classifier stays in memory while those of the learning curve are
    trained, so what the largest of these takes is added (`aside`).
    """
    width = max(width_of(side, model.config.block_size) for side in sides)
    work = Work(
        rows=micro_batch(config),
        width=width,
        read_rows=rows_at_once(width, TEXTS_AT_ONCE),
        policy=config.classify.aux_lm > 0,
        spares=spare_buffers(config),
        copies=2,  # the gradient of the hidden states, and the weighted states of `pooled`
    )
    if next(planned(config, sides.train.labels), None) is None:
        return work
    kinds = [model.config, *([replace(model.config, lora_rank=0)] if config.classify.compare_scratch else [])]
    curve = max(short_training_bytes(kind, model.dtype_name, config.optim, work) for kind in kinds)
    return replace(work, aside=max(curve, PLOT))


def read_sides(run: RunFolder, model: GPT) -> tuple[list[str], Sides]:
    """Return the names of the classes, sorted, and the texts of a run as the model
    reads them.

    Raises DataError for a file of texts that has changed since the run was made.
    """
    records = {name: read_labelled(checked_records(run, name)) for name in Sides._fields}
    classes = classes_of(records["train"])
    tokenizer, T = run.load_tokenizer(), model.config.block_size
    return classes, Sides(*(encode_texts(side, classes, tokenizer, T) for side in records.values()))


def finish_curve(run: RunFolder, config: ClassifyConfig, base: GPT, sides: Sides, console: Console) -> list[Point]:
    """Train the points that the learning curve lacks. Return all of its points.

    Each point is saved when it is done. Raises Interrupted after SIGINT or SIGTERM.
    """
    path = run.path / "curve.jsonl"
    points = read_curve(path)
    plans = list(planned(config, sides.train.labels))
    with stop_on_signals() as stop, console.status("") as status:
        for plan in plans[len(points) :]:
            method, labels, seed = plan
            status.update(
                f"training {len(points) + 1} of {len(plans)}: {method}, {labels} labels per class, seed {seed}"
            )
            point = train_point(base, config, *sides, plan, stop)
            if point is None:
                raise Interrupted(
                    f"Stopped after {len(points)} trainings; go on with: npllm resume {shell_word(run.path)}"
                )
            points.append(point)
            write_curve(path, points)
    return points


STAGE = Classify()
