"""`npllm evaluate` on texts, with a window that slides, and on held-out records."""

import json
import shutil

import pytest
from small_runs import checkpoints, content, refused, run, summary
from stage_runs import DEMONSTRATIONS, PREFERENCES, PROMPTS, pretrained, stage_arguments, write_jsonl

import npllm
from npllm.training.evaluation import evaluate

pytestmark = pytest.mark.usefixtures("quick")

TEXTS = [{"text": f"{word} {'a ' * i}{word}", "label": word} for i in range(8) for word in ("cat", "dog")]
BASES = {"sft": "pretrained", "classify": "pretrained", "reward": "sft", "dpo": "sft", "ppo": "sft"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of each stage, after their records; block_size is 32."""
    folder = tmp_path_factory.mktemp("runs")
    pretrained(folder, train__steps=60, optim__lr=1e-2)  # long enough to use its context
    records = {
        "sft": {"data": write_jsonl(folder / "demonstrations.jsonl", DEMONSTRATIONS)},
        "classify": {"data": write_jsonl(folder / "texts.jsonl", TEXTS), "classify__labels": 2, "classify__seeds": 2},
        "reward": {"data": write_jsonl(folder / "preferences.jsonl", PREFERENCES)},
        "dpo": {"data": folder / "preferences.jsonl"},
        "ppo": {
            "prompts": write_jsonl(folder / "prompts.jsonl", PROMPTS),
            "reward": folder / "reward",
            "ppo__rollout_size": 4,
            "ppo__max_tokens": 4,
            "train__steps": 1,
        },
    }
    for verb, base in BASES.items():
        assert run(*stage_arguments(verb, folder / base, folder / verb, **records[verb])) == 0
    return folder


def figures(capsys, *arguments) -> list[tuple[str, str]]:
    """The names and values that `npllm evaluate` prints."""
    capsys.readouterr()
    assert run("evaluate", *arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    return [(line[:15].rstrip(), line[15:]) for line in lines]


@pytest.mark.parametrize("of", [[], ["--data", "text.txt"]], ids=["its own text", "a file"])
def test_a_stride_adds_the_figures_of_a_sliding_window(folder, monkeypatch, capsys, of):
    monkeypatch.chdir(folder)
    plain, both = figures(capsys, "pretrained", *of), figures(capsys, "pretrained", *of, "--stride", 4)
    assert both[:3] + both[-1:] == plain
    assert both[3] == ("stride of 4", "each token has at least 28 tokens before it, if the text has them")
    assert [name for name, _ in both[4:7]] == [name for name, _ in plain[:3]] == ["loss", "perplexity", "bits per byte"]
    assert both[4:7] != plain[:3]
    if of:
        model, tokenizer = npllm.load("pretrained")
        text = (folder / "text.txt").read_text()
        result = evaluate(model, tokenizer.encode_documents([text])[0], len(text), stride=4)
        assert both[6][1] == f"{result.bits_per_byte:.4f}"


def test_a_stride_as_long_as_the_window_changes_nothing(folder, capsys):
    both = figures(capsys, folder / "pretrained", "--stride", 32)
    assert both[4:7] == both[:3]


@pytest.mark.parametrize("stride", [0, -1, 33])
def test_a_stride_out_of_range_is_refused(folder, capsys, stride):
    message = refused(capsys, "evaluate", folder / "pretrained", "--stride", stride, exit_code=2)
    assert message == f"npllm: stride is {stride}; set it to at least 1 and to at most model.block_size = 32."


def test_sft_on_its_held_out_responses(folder, capsys):
    """The loss is that of the summary."""
    (_, loss), (_, perplexity), (_, text) = figures(capsys, folder / "sft")
    assert loss == f"{summary(folder / 'sft')['val_loss']:.4f} nats per token"
    assert float(perplexity) > 1
    [record] = map(json.loads, (folder / "sft" / "data" / "val.jsonl").read_text().splitlines())
    n_targets = len(record["response"]) + 1  # characters, and the stop token
    assert text == f"the responses of 1 held-out demonstrations, {n_targets} predicted tokens"


def test_classify_on_its_test_texts(folder, capsys):
    expected = summary(folder / "classify")
    assert figures(capsys, folder / "classify") == [
        ("loss", f"{expected['loss']:.4f} nats per text"),
        ("accuracy", f"{expected['accuracy']:.1%}"),
        ("text", "2 held-out texts of 2 classes"),
    ]


def test_reward_and_dpo_on_their_held_out_pairs(folder, capsys):
    expected = summary(folder / "reward")
    assert figures(capsys, folder / "reward") == [
        ("loss", f"{expected['loss']:.4f} nats per pair"),
        ("accuracy", f"{expected['accuracy']:.1%} of the pairs are ranked rightly"),
        ("margin", f"{expected['margin']:.3f}"),
        ("text", "2 held-out pairs"),
    ]
    loss, accuracy, text = figures(capsys, folder / "dpo")
    assert loss == ("loss", f"{summary(folder / 'dpo')['val_loss']:.4f} nats per pair")
    assert accuracy[1].endswith("% of the pairs are ranked rightly")
    assert text == ("text", "2 held-out pairs")


def test_a_checkpoint_is_evaluated_on_what_its_run_held_out(folder, capsys):
    first, last = checkpoints(folder / "sft")[0], checkpoints(folder / "sft")[-1]
    assert figures(capsys, last) == figures(capsys, folder / "sft") != figures(capsys, first)


def test_evaluation_changes_nothing(folder, capsys):
    before = content(folder)
    for verb in ("sft", "classify", "reward", "dpo"):
        figures(capsys, folder / verb)
    assert content(folder) == before


def test_without_anything_held_out_a_text_is_asked_for(folder, capsys):
    message = refused(capsys, "evaluate", folder / "ppo", exit_code=2)
    assert message == f"npllm: {folder / 'ppo'} holds no validation text; name one with --data."


@pytest.mark.parametrize("verb", ["sft", "classify", "reward", "dpo", "ppo"])
def test_a_stride_is_for_texts(folder, capsys, verb):
    message = refused(capsys, "evaluate", folder / verb, "--stride", 4, exit_code=2)
    assert message.endswith("holds no validation text, which --stride is for; name a text with --data.")
    assert len(figures(capsys, folder / verb, "--data", folder / "text.txt", "--stride", 16)) == 8


@pytest.mark.parametrize(("verb", "name"), [("sft", "val"), ("classify", "test"), ("reward", "val"), ("dpo", "val")])
def test_records_that_changed_are_refused(folder, tmp_path, capsys, verb, name):
    path = shutil.copytree(folder / verb, tmp_path / "run")
    records = path / "data" / f"{name}.jsonl"
    records.write_text(records.read_text() + "\n")
    message = refused(capsys, "evaluate", path, exit_code=3)
    assert f"{records} does not have the hash in SHA256SUMS beside it" in message
