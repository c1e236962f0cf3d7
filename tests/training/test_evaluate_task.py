"""`npllm evaluate --task minimal-pairs`: accuracy, the text of the pairs, lm_eval's
files."""

import contextlib
import inspect
import json.decoder
import shlex
import shutil
import textwrap

import pytest
from small_runs import refused, run
from stage_runs import pretrained

import npllm
from npllm.data.corpora import Corpus
from npllm.data.documents import Document, stored
from npllm.data.minimal_pairs import PHENOMENA, MinimalPair
from npllm.generation.likelihood import Likelihood, log_likelihoods
from npllm.model import GPT, ModelConfig
from npllm.runs.run_folder import RunFolder
from npllm.tokenizer import byte_tokenizer
from npllm.training import evaluate_task
from npllm.training.evaluate_task import accuracies, documents_of, in_words, judge, pairs_for

pytestmark = pytest.mark.usefixtures("quick")

HELD_OUT = (contextlib, json.decoder, shlex)
PAIRS = [
    MinimalPair(phenomenon, f"def f{n}(a):\n    return a\n", f"def f{n}(a):\n    return b\n", "a", "b")
    for phenomenon in PHENOMENA
    for n in range(3)
]


@pytest.fixture(scope="module")
def library():
    """A small standard library, of which only textwrap is not held out."""
    *held_out, other = [Document(m.__name__, stored(inspect.getsource(m))) for m in (*HELD_OUT, textwrap)]
    return Corpus([other], held_out, 0, 0, "", [])


@pytest.fixture(scope="module")
def of_text(tmp_path_factory):
    """A run on a text that is no code; block_size is 256."""
    folder = tmp_path_factory.mktemp("runs")
    pretrained(folder, model__block_size=256, data__tokenizer="byte", train__steps=1)
    return folder / "pretrained"


def shown(capsys, *arguments):
    capsys.readouterr()
    assert run("evaluate", *arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    return {line[:15].rstrip(): line[15:] for line in lines}


@pytest.mark.parametrize(("preferred", "accuracy"), [("return a", "100.0%"), ("return b", "0.0%"), ("def", "50.0%")])
def test_a_model_that_always_prefers_one_of_them(monkeypatch, preferred, accuracy):
    """A tie counts half."""
    tokenizer = byte_tokenizer()

    def scores(model, pairs):
        return [Likelihood(float(preferred in tokenizer.decode(text)), True) for start, text in pairs]

    monkeypatch.setattr(evaluate_task, "log_likelihoods", scores)
    figures = dict(accuracies(judge(None, tokenizer, PAIRS)))
    assert [figures[name].split(" ± ")[0] for name in (*PHENOMENA, "all")] == [accuracy] * 5


def test_the_score_is_the_log_probability_of_the_whole_function():
    tokenizer = byte_tokenizer()
    model = GPT(ModelConfig(n_layer=1, n_head=1, n_embd=8, block_size=32, vocab_size=tokenizer.vocab_size))
    judged = judge(model, tokenizer, PAIRS)
    for each in judged:
        texts = [([tokenizer.eot_id], tokenizer.encode(text)) for text in (each.pair.right, each.pair.wrong)]
        assert (each.right, each.wrong) == tuple(found.log_probability for found in log_likelihoods(model, texts))


def test_an_accuracy_in_words():
    assert in_words([1.0, 1.0, 1.0, 0.0]) == "75.0% ± 21.7% of 4 pairs"


def test_the_pairs_of_a_run_on_the_library_are_from_what_it_held_out(of_text, monkeypatch, library, tmp_path):
    tokenizer = npllm.load(of_text)[1]
    folder = RunFolder(shutil.copytree(of_text, tmp_path / "run"))
    shards = {folder.val_shard: "def kept(a):\n    return (a)\n\n\ndef known(b):\n    return [b]\n",
              folder.train_shard: "class A:\n    def known(b):\n        return [b]\n"}  # fmt: skip
    monkeypatch.setattr(evaluate_task, "documents_of", lambda shard, tokenizer: [shards[shard]])
    found = []
    monkeypatch.setattr(evaluate_task, "minimal_pairs", lambda functions, *_: found.append(functions) or PAIRS)
    config = folder.config.read_text()
    folder.config.write_text(config.replace('source = ["', 'source = ["stdlib", "'))
    _, origin = pairs_for(folder, GPT(ModelConfig(n_layer=1, n_head=1, n_embd=8, vocab_size=9)), tokenizer)
    assert found == [["def kept(a):\n    return (a)\n"]]
    assert origin == "1 functions of the held-out text of the run"
    (folder.path / "models").mkdir()
    (folder.path / "models" / "start.h5").write_bytes(b"")
    assert pairs_for(folder, GPT(ModelConfig(n_layer=1, n_head=1, n_embd=8, vocab_size=9)), tokenizer)[1].endswith(
        "; training may have included it"
    )


def test_the_documents_of_a_shard(of_text):
    (text,) = documents_of(RunFolder(of_text).val_shard, npllm.load(of_text)[1])
    assert (of_text.parent / "text.txt").read_text().endswith(text)


def test_another_run_gets_pairs_of_the_library(of_text, monkeypatch, capsys, library, tmp_path):
    """lm_eval's files hold the pairs that it was given."""
    monkeypatch.setattr(evaluate_task, "load_corpus", lambda source: library)
    figures = shown(capsys, of_text, "--task", "minimal-pairs", "--out", tmp_path / "tasks")
    assert 20 < float(figures["all"].partition("%")[0]) < 80  # one update; about half
    assert figures["chance"] == "50 %; the shorter function is the right one in 50.0%; each pair has equal tokens"
    assert figures["text"].endswith(
        " functions of the text that a run on the standard library holds out; training may have included it"
    )
    names = [name for name in PHENOMENA if name in figures]
    assert "bracket" in names
    for name in names:
        stem = f"minimal_pairs_{name.replace(' ', '_')}"
        lines = (tmp_path / "tasks" / f"{stem}.jsonl").read_text().splitlines()
        assert figures[name].endswith(f" of {len(lines)} pairs")
        assert [json.loads(line)["label"] for line in lines] == [n % 2 for n in range(len(lines))]
        task = (tmp_path / "tasks" / f"{stem}.yaml").read_text()
        assert f'    test: "{tmp_path}/tasks/{stem}.jsonl"\n' in task
        assert f"  - {stem}\n" in (tmp_path / "tasks" / "minimal_pairs.yaml").read_text()
    source = "".join(map(inspect.getsource, HELD_OUT))
    for document in map(json.loads, lines):
        right, wrong = document["choices"] if document["label"] == 0 else reversed(document["choices"])
        assert right.splitlines()[0] in source
        assert right != wrong


def test_what_does_not_belong_together_is_refused(of_text, capsys, tmp_path):
    task = ["--task", "minimal-pairs"]
    for arguments, message in (
        (["--out", tmp_path], "--out is only for --task; leave it out."),
        ([*task, "--stride", 4], "--stride is not for --task; leave it out."),
        ([*task, "--data", "text.txt"], "--data is not for --task; leave it out."),
    ):
        assert refused(capsys, "evaluate", of_text, *arguments, exit_code=2) == f"npllm: {message}"


def test_a_folder_that_is_not_empty_is_refused(of_text, monkeypatch, library, tmp_path):
    (tmp_path / "mine").write_text("")
    with pytest.raises(npllm.errors.ConfigError, match="is not empty; choose another folder"):
        evaluate_task.write_tasks(PAIRS, tmp_path)


def test_a_model_that_sees_too_little_is_refused(of_text, monkeypatch, library):
    monkeypatch.setattr(evaluate_task, "load_corpus", lambda source: library)
    model = GPT(ModelConfig(n_layer=1, n_head=1, n_embd=8, block_size=4, vocab_size=300))
    with pytest.raises(npllm.errors.DataError, match=r"no pair fits this model \(block_size 4\)"):
        pairs_for(RunFolder(of_text), model, byte_tokenizer())
