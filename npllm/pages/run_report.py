"""The page of `npllm report RUN`: how a run went, and what its model has learnt.

A part of a run that cannot be read does not stop the page: a sentence stands in its
place. So the page of a run that is being trained, or is damaged, shows what there is.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from rich.console import Console

from npllm.data.shards import TokenShard, read_extent, read_shard
from npllm.errors import NpllmError
from npllm.files.bounded_read import read_bounded
from npllm.files.text_format import decode
from npllm.model import ModelConfig
from npllm.pages.answers import answers
from npllm.pages.columns import Columns, MetricsLog
from npllm.pages.curves import Chart, bits_chart, charts
from npllm.pages.events import Events, events_of
from npllm.pages.page import check_page, render, write_page
from npllm.pages.speed import speed_words
from npllm.pages.summary_charts import summary_charts
from npllm.pages.values import nested_values, simple_values
from npllm.runs.checkpoint import model_from_checkpoint
from npllm.runs.config_file import load_config, run_record, stage_of
from npllm.runs.ledger import Ledger
from npllm.runs.run_folder import RunFolder, open_run
from npllm.runs.sample_log import Sample, read_samples
from npllm.runs.summary import read_summary
from npllm.training.evaluation import Evaluation
from npllm.training.stages import stage_in
from npllm.training.verdict import verdict

T = TypeVar("T")
LARGEST_SAMPLES = 1 << 20  # bytes of samples.txt
MOST_SAMPLES = 40  # that a page shows
LONGEST_TEXT = 4000  # characters of one text on the page
COMPRESSORS = ("gzip", "bz2", "xz")


class Problems:
    """Collects why parts of a run cannot be shown."""

    def __init__(self, run: RunFolder):
        self.run, self.sentences = run, []

    def part(self, read: Callable[[], T], otherwise: T) -> T:
        """What `read` returns; `otherwise` and a sentence where it raises."""
        try:
            return read()
        except NpllmError as error:
            # The page is the same wherever the run lies.
            sentence = str(error).replace(f"{self.run.path}/", "").replace(str(self.run.path), self.run.path.name)
            if sentence not in self.sentences:  # several parts may need the same file
                self.sentences.append(sentence)
            return otherwise


class RunFiles(NamedTuple):
    """What the files of a run say. config: its sections. record: the table [run]. A
    part that is missing or cannot be read is empty."""

    name: str
    stage: str
    config: dict[str, dict[str, Any]]
    record: dict[str, str]
    columns: Columns
    events: Events
    summary: dict[str, Any]


def read_files(run: RunFolder, log: MetricsLog, problems: Problems) -> RunFiles:
    """Read the small files of a run, and its metrics from their log."""
    stage = stage_of(run.config)
    kind = stage_in(run.config).config_type
    none = Events([], 0, {}, [])
    return RunFiles(
        run.path.resolve().name,
        stage,
        problems.part(lambda: asdict(load_config(run.config, kind)), {}),
        problems.part(lambda: run_record(run.config), {}),
        problems.part(log.columns, Columns()),
        problems.part(lambda: events_of(Ledger(run.ledger)), none),
        problems.part(lambda: read_summary(run), {}) if run.summary.exists() else {},
    )


def report_html(run: RunFolder, report_progress: Callable[[str], None] = lambda line: None) -> str:
    """The page of a run. report_progress: called with what is being done."""
    from npllm.pages.learnt.section import STAGES, learnt_section

    problems = Problems(run)
    files = read_files(run, MetricsLog(run.metrics), problems)
    drawn = run_charts(run, files, problems)
    has_model = any(run.checkpoints.glob("step-*.h5"))
    report_progress("generating answers")
    context = {
        "files": files,
        "state": state_of(files),
        "figures": simple_values(files.summary),
        "details": {name: short(text) for name, text in nested_values(files.summary).items()},
        "settings": {"machine and versions": files.record}
        | {section: simple_values(fields) for section, fields in files.config.items()},
        "charts": drawn,
        "speed": problems.part(lambda: speed(run, files), ""),
        "verdicts": problems.part(lambda: verdicts(run, files), []),
        "samples": problems.part(lambda: shown_samples(run), []),
        "final_samples": problems.part(lambda: final_samples(run), ""),
        "answers": problems.part(lambda: answers(run, files.stage), []) if has_model else [],
    }
    report_progress("measuring what the model has learnt")
    context["learnt"] = None
    if files.stage in STAGES and has_model:
        context["learnt"] = problems.part(lambda: learnt_section(run), None)
    return render("report.html", **context, problems=problems.sentences, contents=contents_of(context))


def contents_of(context: dict[str, Any]) -> list[tuple[str, str]]:
    """The parts of the page, (anchor, title), that are there."""
    parts = [
        ("curves", "Curves", context["charts"]),
        ("events", "Events", True),
        ("samples", "Samples", context["samples"] or context["final_samples"]),
        ("answers", "Answers before and after", context["answers"]),
        ("learnt", "What the model has learnt", context["learnt"]),
        ("settings", "Settings and machine", True),
    ]
    return [("result", "Result"), *((anchor, title) for anchor, title, there in parts if there)]


def state_of(files: RunFiles) -> str:
    """Whether a run is finished, in a sentence."""
    steps = files.columns["step"]
    last = int(steps[-1]) if len(steps) else 0
    if files.summary:
        return f"Finished after {files.summary['steps']:,} updates."
    planned = files.config.get("train", {}).get("steps")
    return f"Not finished: {last:,} updates of {f'{planned:,}' if planned else 'a number that is not known yet'}."


def run_charts(run: RunFolder, files: RunFiles, problems: Problems) -> list[Chart]:
    """All pictures of a run, bits per byte first where the run has a text."""
    drawn = [*charts(files.stage, files.columns, files.events.spikes), *summary_charts(files.summary)]
    if not run.val_shard.exists():
        return drawn
    ratios = problems.part(lambda: tokens_per_byte(run), {})
    bits = {name: files.summary.get(f"{name}_bits_per_byte") for name in COMPRESSORS}
    levels = {name: value for name, value in bits.items() if isinstance(value, int | float)}
    first = bits_chart(files.columns, ratios, levels)
    return [first, *drawn] if first else drawn


def tokens_per_byte(run: RunFolder) -> dict[str, float]:
    """The tokens per byte of the training and the validation text, by column."""
    extents = {"loss": read_extent(run.train_shard), "val_loss": read_extent(run.val_shard)}
    return {column: each.n_tokens / each.n_bytes for column, each in extents.items()}


def speed(run: RunFolder, files: RunFiles) -> str:
    """Sentences about the speed of a pretraining; "" for what is not one."""
    if files.stage != "pretrain" or not files.config:
        return ""
    model = ModelConfig(**files.config["model"], vocab_size=run.load_tokenizer().vocab_size)
    return speed_words(files.columns, model, files.config["train"], files.record.get("cpu", ""))


def verdicts(run: RunFolder, files: RunFiles) -> list[str]:
    """The sentences of `training/verdict.py` about a finished pretraining."""
    needed = (
        "val_loss",
        "val_perplexity",
        "val_bits_per_byte",
        "train_loss",
        *(f"{n}_bits_per_byte" for n in COMPRESSORS),
    )
    figures = files.summary
    if files.stage != "pretrain" or any(type(figures.get(name)) is not float for name in needed):
        return []
    train, val = read_shard(run.train_shard), read_shard(run.val_shard)
    model = model_from_checkpoint(run.newest_checkpoint())
    result = _evaluation(figures, val)
    compressors = {name: figures[f"{name}_bits_per_byte"] for name in COMPRESSORS}
    return list(verdict(run, model, train, val, result, figures["train_loss"], compressors))


def _evaluation(figures: dict[str, Any], val: TokenShard) -> Evaluation:
    values = (figures[f"val_{name}"] for name in ("loss", "perplexity", "bits_per_byte"))
    return Evaluation(*values, len(val.tokens) - 1, val.n_bytes)


def shown_samples(run: RunFolder) -> list[Sample]:
    """The samples of the evaluations; of many, the first, the last and some between."""
    samples = read_samples(run.sample_log)
    if len(samples) > MOST_SAMPLES:
        numbers = [i * (len(samples) - 1) // (MOST_SAMPLES - 1) for i in range(MOST_SAMPLES)]
        samples = [samples[number] for number in numbers]
    return [each._replace(prompt=short(each.prompt), text=short(each.text)) for each in samples]


def final_samples(run: RunFolder) -> str:
    """The samples that were written at the end of a run; "" where there are none."""
    if not run.samples.exists():
        return ""
    return short(decode(run.samples, read_bounded(run.samples, LARGEST_SAMPLES)))


def short(text: str) -> str:
    """A text with at most LONGEST_TEXT characters."""
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]} …"


def write_report(paths: Sequence[Path], out: Path | None, console: Console) -> Path:
    """Write the report of a run, or the comparison of several. Returns its path.

    out: None = report.html in the folder of the run or, for several, comparison.html.
    """
    from npllm.pages.comparison import comparison_html

    runs = [open_run(path) for path in paths]
    path = out or (runs[0].path / "report.html" if len(runs) == 1 else Path("comparison.html"))
    check_page(path)
    with console.status("reading the run") as status:
        page = report_html(runs[0], status.update) if len(runs) == 1 else comparison_html(runs)
    write_page(path, page)
    return path
