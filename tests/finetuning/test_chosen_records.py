"""Files with bad records: which records are used, and what is said of the others."""

import io
import json
from pathlib import Path

import pytest
from stage_runs import write_jsonl

from npllm.data.fitting import Room
from npllm.data.records import Labelled, Preference, preference, scan, scan_labelled
from npllm.errors import ConfigError, DataError
from npllm.finetuning.chosen_records import chosen_records, fitting_records, say_contradictions, say_shared_texts
from npllm.output import TextConsole
from npllm.rlhf.dpo import DPOSettings
from npllm.tokenizer import byte_tokenizer

PUBLISHED = Path(__file__).resolve().parents[2] / "../shared/data/instruction-preference.json"
GOOD = {"prompt": "abc", "chosen": "de", "rejected": "fg"}
LONG = {"prompt": "a" * 50, "chosen": "de", "rejected": "fg"}
EQUAL = {"prompt": "abc", "chosen": "de", "rejected": "de"}
ROOM = Room(32, "model.block_size")


@pytest.fixture
def console():
    return TextConsole(file=io.StringIO(), width=40)


def chosen(path, on_bad, console) -> list[Preference]:
    return fitting_records(scan(path, preference), on_bad, "dpo", byte_tokenizer(), ROOM, console)


@pytest.fixture
def path(tmp_path):
    return write_jsonl(tmp_path / "some.jsonl", [GOOD, LONG, EQUAL, GOOD | {"prompt": "xyz"}, EQUAL, GOOD])


def test_stop_names_every_bad_record_by_its_line(path, console):
    """Records that are too long are listed too. Lines are those of the file."""
    with pytest.raises(DataError) as refused:
        chosen(path, "stop", console)
    head, *lines = str(refused.value).split("\n  ")
    hint = "(--dpo.on_bad skip leaves bad records out, truncate shortens those that are too long.)"
    assert head == f"{path} has 3 bad records of 6. {hint}"
    assert [line.partition(":")[0] for line in lines] == ["line 2", "line 3", "line 5"]
    assert lines[0].startswith("line 2: it has 53 tokens, more than model.block_size = 32")
    assert console.file.getvalue() == ""


def test_skip_leaves_them_out_and_says_how_many_of_each_kind(path, console):
    found = chosen(path, "skip", console)
    assert found == [Preference("abc", "de", "fg"), Preference("xyz", "de", "fg"), Preference("abc", "de", "fg")]
    assert console.file.getvalue().splitlines() == [
        f"{path}: 3 of 6 records are left out: 1 too long (line 2), 2 equal pairs (the first line 3).",
        f"{path}: 1 records repeat others; every copy is used.",
    ]


def test_truncate_shortens_prompts_and_leaves_the_others_out(path, console):
    found = chosen(path, "truncate", console)
    assert found[1] == Preference("a" * 29, "de", "fg")
    assert len(found) == 4
    assert console.file.getvalue().splitlines()[:2] == [
        f"{path}: the beginning of 1 prompts is cut off to fit into model.block_size.",
        f"{path}: 2 of 6 records are left out: 2 equal pairs (the first line 3).",
    ]


@pytest.mark.parametrize("on_bad", ["stop", "skip", "truncate"])
def test_where_nothing_is_left_all_are_named(tmp_path, console, on_bad):
    path = write_jsonl(tmp_path / "bad.jsonl", [EQUAL, {"prompt": "a"}])
    with pytest.raises(DataError, match=r"bad.jsonl has 2 bad records of 2"):
        chosen(path, on_bad, console)


def test_another_word_is_refused():
    with pytest.raises(ConfigError, match=r"dpo.on_bad is 'ignore'; choose one of stop, skip, truncate"):
        DPOSettings(on_bad="ignore")


def test_labels_that_contradict_each_other_and_texts_on_both_sides(tmp_path, console):
    path = tmp_path / "texts.csv"
    path.write_text("text,label\nfine,good\nawful,bad\nfine,bad\nfine,good\n")
    file = scan_labelled(path)
    records = chosen_records(file, "stop", "classify", console)
    say_contradictions(file, console)
    say_shared_texts(records, [Labelled("fine ", "good"), Labelled("new", "good")], console)
    assert console.file.getvalue().splitlines() == [
        f"{path}: 1 records repeat others; every copy is used.",
        f"{path}: 1 texts have more than one label; the first one is 'good' in line 2, 'bad' in line 4.",
        "1 of 2 test texts are training texts too; new texts are harder.",
    ]


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the published preferences are not beside the checkout")
def test_a_published_set_with_its_equal_pairs_and_its_long_ones(console):
    pairs = json.loads(PUBLISHED.read_text())
    room, n_bytes = Room(200, "model.block_size"), {}
    for pair in pairs:
        asked = f"{pair['instruction']}\n" + (f"{pair['input']}\n" if pair["input"] else "")
        longer = max(len(pair[name].encode()) for name in ("chosen", "rejected")) + 1
        n_bytes[tuple(pair.values())] = (len(asked.encode()), longer)
    skipped, shortened = (
        fitting_records(scan(PUBLISHED, preference), on_bad, "dpo", byte_tokenizer(), room, console)
        for on_bad in ("skip", "truncate")
    )
    different = [pair for pair in pairs if pair["chosen"] != pair["rejected"]]
    sizes = [n_bytes[tuple(pair.values())] for pair in different]
    assert len(different) == 1094
    assert len(skipped) == sum(of_prompt + of_response <= 200 for of_prompt, of_response in sizes)
    assert len(shortened) == sum(of_response < 200 for _, of_response in sizes)
    assert 0 < len(skipped) < len(shortened) < 1094
    assert "6 equal pairs (the first record " in console.file.getvalue()
    assert {pair.chosen for pair in shortened} <= {pair["chosen"] for pair in pairs}
