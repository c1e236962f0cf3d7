"""`npllm predict` and `npllm score`: judging the texts of a file."""

import csv
import io
import json
import shlex

import numpy as np
import pytest
from small_runs import checkpoints, content, refused, run
from stage_runs import DEMONSTRATIONS, PREFERENCES, conversations, pretrained, stage_arguments, write_jsonl

import npllm
from npllm.data.records import read_labelled, scan_responses, scan_texts
from npllm.finetuning.classifier import encode_texts, evaluate_classifier
from npllm.rlhf import scoring
from npllm.rlhf.reward import encode_pairs
from npllm.rlhf.sequences import rewards_of

pytestmark = pytest.mark.usefixtures("quick")

LABELLED = [{"text": f"{word} {'a ' * i}{word}", "label": word} for i in range(8) for word in ("cat", "dog", "mat")]
TEXTS = ["the cat sat", "a dog ran on the mat and under the roof and on a mat", "a", "dog"]
BASES = {"sft": "pretrained", "classify": "pretrained", "reward": "sft"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A language model, a classifier and a reward model; block_size is 32."""
    folder = tmp_path_factory.mktemp("runs")
    pretrained(folder)
    records = {"sft": DEMONSTRATIONS, "classify": LABELLED, "reward": PREFERENCES}
    few = {"classify__labels": 2, "classify__seeds": 2}
    for verb, base in BASES.items():
        data = write_jsonl(folder / f"{verb}.jsonl", records[verb])
        changes = few if verb == "classify" else {}
        assert run(*stage_arguments(verb, folder / base, folder / verb, data=data, **changes)) == 0
    return folder


def shown(capsys, *arguments) -> list[dict]:
    """The table that a verb prints."""
    capsys.readouterr()
    assert run(*arguments) == 0
    return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))


def text_files(path) -> list:
    """The same texts in each form."""
    (path / "texts.txt").write_text("".join(f"{text}\n" for text in TEXTS))
    (path / "texts.csv").write_text("number,text\n" + "".join(f'{i},"{text}"\n' for i, text in enumerate(TEXTS)))
    (path / "texts.tsv").write_text("text\tlabel\n" + "".join(f"{text}\tcat\n" for text in TEXTS))
    write_jsonl(path / "texts.jsonl", [{"text": text, "other": 1} for text in TEXTS])
    (path / "texts.json").write_text(json.dumps([{"text": text} for text in TEXTS]))
    return [path / f"texts.{suffix}" for suffix in ("txt", "csv", "tsv", "jsonl", "json")]


def test_every_form_of_the_same_texts_gives_the_same_predictions(folder, tmp_path, capsys):
    classifier = npllm.Classifier.load(folder / "classify")
    expected = [
        {"label": label, "probability": str(round(p, 6)), "text": text}
        for (label, p), text in zip(classifier.predict(TEXTS), TEXTS, strict=True)
    ]
    for path in text_files(tmp_path):
        assert scan_texts(path).records == TEXTS
        assert shown(capsys, "predict", folder / "classify", "--data", path) == expected


def test_a_prediction_is_the_likeliest_class_of_the_text_alone(folder):
    """In the order of the texts, whatever their lengths; a long one by its end."""
    classifier = npllm.Classifier.load(folder / "classify")
    assert classifier.classes == ["cat", "dog", "mat"]
    p = classifier.probabilities(TEXTS)
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-12)
    assert len(np.unique(p[:, 0].round(4))) == len(TEXTS)
    for text, row, (label, probability) in zip(TEXTS, p, classifier.predict(TEXTS), strict=True):
        np.testing.assert_allclose(classifier.probabilities([text])[0], row, rtol=1e-4)
        np.testing.assert_allclose(classifier.probabilities([text[-32:]])[0], row, rtol=1e-4)
        assert (label, probability) == (classifier.classes[row.argmax()], row.max())
    assert classifier.predict([]) == []


def test_the_predictions_are_as_accurate_as_the_test_of_the_run_says(folder, capsys):
    """A file with labels is read too; they are not looked at."""
    test = folder / "classify" / "data" / "test.jsonl"
    records = read_labelled(test)
    rows = shown(capsys, "predict", folder / "classify", "--data", test)
    right = np.mean([row["label"] == record.label for row, record in zip(rows, records, strict=True)])
    classifier = npllm.Classifier.load(folder / "classify")
    texts = encode_texts(records, classifier.classes, classifier.tokenizer, 32)
    result = evaluate_classifier(classifier.model, texts, classifier.pool)
    assert right == pytest.approx(result.accuracy)
    numbers = [classifier.classes.index(record.label) for record in records]
    of_labels = classifier.probabilities([record.text for record in records])[range(len(records)), numbers]
    assert -np.log(of_labels).mean() == pytest.approx(result.loss)


@pytest.mark.parametrize("verb", ["predict", "score"])
def test_results_go_into_a_file_by_its_name(folder, tmp_path, capsys, verb):
    """csv is the same as on standard output, and jsonl holds the same values."""
    stage, data = {"predict": ("classify", "classify.jsonl"), "score": ("reward", "sft.jsonl")}[verb]
    command = (verb, folder / stage, "--data", folder / data)
    rows = shown(capsys, *command)
    for name in ("out.csv", "out.JSONL"):
        assert run(*command, "--out", tmp_path / name) == 0
        assert capsys.readouterr().out == f"{tmp_path / name}: {len(rows)} rows\n"
    assert list(csv.DictReader((tmp_path / "out.csv").open(newline=""))) == rows
    lines = [json.loads(line) for line in (tmp_path / "out.JSONL").read_text().splitlines()]
    assert [{name: str(value) for name, value in line.items()} for line in lines] == rows
    assert {type(line[{"predict": "probability", "score": "score"}[verb]]) for line in lines} == {float}


def test_the_next_command_of_classify_works_as_it_is_printed(folder, capsys):
    assert run("resume", folder / "classify") == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Next: ")]
    program, *arguments = shlex.split(line.removeprefix("Next: "))
    assert (program, arguments[0]) == ("npllm", "predict")
    assert len(shown(capsys, *arguments)) > 1


def test_a_checkpoint_predicts_and_nothing_in_a_run_changes(folder, capsys):
    before = content(folder)
    first, last = checkpoints(folder / "classify")[0], checkpoints(folder / "classify")[-1]
    early, late, whole = (
        shown(capsys, "predict", path, "--data", folder / "classify.jsonl")
        for path in (first, last, folder / "classify")
    )
    assert late == whole != early
    chosen = shown(capsys, "predict", folder / "classify", "--checkpoint", 0, "--data", folder / "classify.jsonl")
    assert chosen == early
    assert content(folder) == before


def test_a_chosen_checkpoint_scores(folder, capsys):
    first, *options = checkpoints(folder / "reward")[0], "--data", folder / "reward.jsonl"
    early = shown(capsys, "score", first, *options)
    assert shown(capsys, "score", folder / "reward", "--checkpoint", 0, *options) == early
    assert shown(capsys, "score", folder / "reward", *options) != early


def test_scores_are_those_of_training(folder, capsys, monkeypatch):
    """A preference gives two rows. A response scores the same in each form, and with
    any number of others."""
    pairs = shown(capsys, "score", folder / "reward", "--data", folder / "reward.jsonl")
    assert [(row["prompt"], row["response"]) for row in pairs] == [
        (record["prompt"], record[side]) for record in PREFERENCES for side in ("chosen", "rejected")
    ]
    model, tokenizer = npllm.load(folder / "reward")
    encoded = encode_pairs(scan_responses(folder / "reward.jsonl").records, tokenizer, 32)
    expected = np.stack([rewards_of(model, side) for side in encoded], axis=1).ravel()
    np.testing.assert_allclose([float(row["score"]) for row in pairs], expected, rtol=1e-4, atol=1e-5)
    assert len(np.unique(expected.round(5))) == len(expected)

    judge = npllm.RewardModel.load(folder / "reward")
    prompts, responses = ([row[name] for row in pairs] for name in ("prompt", "response"))
    np.testing.assert_allclose(judge.score(prompts, responses), expected, rtol=1e-4, atol=1e-5)
    assert judge.score([], []).shape == (0,)
    monkeypatch.setattr(scoring, "AT_ONCE", 3)
    np.testing.assert_allclose(judge.score(prompts, responses), expected, rtol=1e-4, atol=1e-5)


def test_responses_in_a_table(folder, tmp_path, capsys):
    lines = [f"{record['prompt']},{record['response']}\n" for record in DEMONSTRATIONS]
    (tmp_path / "responses.csv").write_text("prompt,response\n" + "".join(lines))
    of_table = shown(capsys, "score", folder / "reward", "--data", tmp_path / "responses.csv")
    assert of_table == shown(capsys, "score", folder / "reward", "--data", folder / "sft.jsonl")


def test_conversations_are_scored_by_a_model_that_knows_them(folder, tmp_path, capsys):
    talks = write_jsonl(tmp_path / "talks.jsonl", conversations(DEMONSTRATIONS))
    assert run(*stage_arguments("sft", folder / "pretrained", tmp_path / "sft", data=talks)) == 0
    words = stage_arguments("reward", tmp_path / "sft", tmp_path / "reward", data=folder / "reward.jsonl")
    assert run(*words, "--reward.on_bad", "skip") == 0
    rows = shown(capsys, "score", tmp_path / "reward", "--data", talks)
    assert json.loads(rows[0]["prompt"]) == [{"role": "user", "content": "the cat"}]
    as_texts = shown(capsys, "score", tmp_path / "reward", "--data", folder / "sft.jsonl")
    assert [row["score"] for row in as_texts] == [row["score"] for row in rows]
    message = refused(capsys, "score", folder / "reward", "--data", talks, exit_code=2)
    assert "no special token <|end|>" in message


BAD = {
    "a language model": ("predict", "sft", "good.txt", [], 2, "sft is a language model, which knows no classes; name"),
    "a reward model": (
        "predict",
        "reward",
        "good.txt",
        [],
        2,
        "reward is a reward model, which knows no classes; name",
    ),
    "score without reward": ("score", "sft", "good.jsonl", [], 2, "sft is a language model, which scores no responses"),
    "score of classes": ("score", "classify", "good.jsonl", [], 2, "classify is a classifier, which scores no"),
    "no run": ("predict", "absent", "good.txt", [], 3, "absent is not a folder"),
    "no file": ("predict", "classify", "absent.csv", [], 3, "absent.csv cannot be read"),
    "no texts": ("predict", "classify", "empty.csv", [], 3, "empty.csv holds no records"),
    "no column": (
        "predict",
        "classify",
        "label.csv",
        [],
        3,
        "label.csv line 1: the header is 'label, words'; name the column text in",
    ),
    "no field": ("predict", "classify", "good.jsonl", [], 3, "line 1: the field 'text' is missing"),
    "a bad text": ("predict", "classify", "mixed.txt", [], 3, "mixed.txt line 2: the character"),
    "no columns": ("score", "reward", "label.csv", [], 3, "name the columns prompt and response in it, once each."),
    "no response": ("score", "reward", "prompt.jsonl", [], 3, "line 1: the field 'response' is missing"),
    "a long response": (
        "score",
        "reward",
        "long.jsonl",
        [],
        3,
        "line 2: it has 38 tokens, more than model.block_size = 32",
    ),
    "another ending": (
        "predict",
        "classify",
        "good.txt",
        ["--out", "out.txt"],
        2,
        "--out out.txt is neither a .csv nor",
    ),
    "over the texts": (
        "predict",
        "classify",
        "good.csv",
        ["--out", "sub/../good.csv"],
        2,
        "good.csv is the file of --data, which",
    ),
    "over the records": (
        "score",
        "reward",
        "good.jsonl",
        ["--out", "good.jsonl"],
        2,
        "good.jsonl is the file of --data",
    ),
    "no folder": ("predict", "classify", "good.txt", ["--out", "no/out.csv"], 5, "(there is no folder no); make it"),
}


@pytest.mark.parametrize(("verb", "stage", "data", "options", "exit_code", "complaint"), BAD.values(), ids=BAD)
def test_what_cannot_be_is_refused_in_one_sentence(
    folder, tmp_path, monkeypatch, capsys, verb, stage, data, options, exit_code, complaint
):
    """Nothing is printed, and no file is written or changed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.txt").write_text("the cat\n")
    (tmp_path / "good.csv").write_text("text\nthe cat\n")
    (tmp_path / "mixed.txt").write_text("the cat\nQUX\n")
    (tmp_path / "empty.csv").write_text("text\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "label.csv").write_text("label,words\ncat,the cat\n")
    write_jsonl(tmp_path / "good.jsonl", DEMONSTRATIONS)
    write_jsonl(tmp_path / "prompt.jsonl", [{"prompt": "a"}])
    write_jsonl(tmp_path / "long.jsonl", [DEMONSTRATIONS[0], {"prompt": "a" * 30, "response": "the cat"}])
    before = content(tmp_path)
    assert complaint in refused(capsys, verb, folder / stage, "--data", data, *options, exit_code=exit_code)
    assert capsys.readouterr().out == ""
    assert content(tmp_path) == before


def test_earlier_results_stay_where_the_texts_are_bad(folder, tmp_path, capsys):
    (tmp_path / "mixed.txt").write_text("the cat\nQUX\n")
    (tmp_path / "out.csv").write_text("mine")
    command = ("predict", folder / "classify", "--data", tmp_path / "mixed.txt", "--out", tmp_path / "out.csv")
    refused(capsys, *command, exit_code=3)
    assert (tmp_path / "out.csv").read_text() == "mine"


def test_in_python_a_text_that_cannot_be_judged_is_named(folder):
    classifier = npllm.Classifier.load(folder / "classify")
    with pytest.raises(npllm.errors.DataError, match="Text 2 is empty; leave it out."):
        classifier.predict(["the cat", ""])
    with pytest.raises(npllm.errors.DataError, match="'Q'"):
        classifier.predict(["Q"])
