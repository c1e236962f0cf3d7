"""Fine-tuning records: reading them, writing them back, and naming the bad ones."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from npllm.data import rows
from npllm.data.records import (
    Conversation,
    Demonstration,
    Labelled,
    Message,
    Preference,
    read_demonstrations,
    read_labelled,
    read_preferences,
    read_prompts,
    write_records,
)
from npllm.errors import DataError, ResourceError

SST2 = Path(__file__).resolve().parents[2] / "../shared/data/stsa.binary.train"

CHAT = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "hi"},
]


def write(folder: Path, text: str, name: str = "data.jsonl") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


def write_lines(folder: Path, *lines: object) -> Path:
    return write(folder, "".join(json.dumps(line) + "\n" for line in lines))


def test_demonstrations_and_conversations(tmp_path):
    path = write_lines(
        tmp_path,
        {"prompt": "2 + 2 =", "response": " 4", "source": 7},
        {"messages": CHAT, "prompt": "hello"},
        {"prompt": "", "response": "free"},
        {"messages": [{**CHAT[1], "name": "Eve"}, CHAT[2]]},
    )
    assert read_demonstrations(path) == [
        Demonstration("2 + 2 =", " 4"),
        Conversation((Message("system", "be brief"), Message("user", "hello"), Message("assistant", "hi"))),
        Demonstration("", "free"),
        Conversation((Message("user", "hello"), Message("assistant", "hi"))),
    ]


def test_preferences_and_the_prompts_in_them(tmp_path):
    path = write_lines(
        tmp_path, {"prompt": "p", "chosen": "a", "rejected": ""}, {"prompt": "", "chosen": "", "rejected": "b"}
    )
    assert read_preferences(path) == [Preference("p", "a", ""), Preference("", "", "b")]
    assert read_prompts(path) == ["p", ""]


def test_a_prompt_may_be_a_conversation(tmp_path):
    """The last message of such a prompt is the user's."""
    talk = [*CHAT, {"role": "user", "content": "well?"}]
    path = write_lines(
        tmp_path,
        {"prompt": talk, "chosen": "a", "rejected": "b"},
        {"prompt": talk[1:2], "chosen": "a", "rejected": "b"},
    )
    prompts = read_prompts(path)
    assert prompts == [
        (Message("system", "be brief"), Message("user", "hello"), Message("assistant", "hi"), Message("user", "well?")),
        (Message("user", "hello"),),
    ]
    assert read_preferences(path) == [Preference(prompt, "a", "b") for prompt in prompts]
    write_records(tmp_path / "again.jsonl", read_preferences(path))
    assert read_preferences(tmp_path / "again.jsonl") == read_preferences(path)


def test_a_prompt_that_the_assistant_ends(tmp_path):
    path = write_lines(tmp_path, {"prompt": CHAT})
    sentence = "line 1: the roles are system, user, assistant; after at most one system message, let user and assistant"
    with pytest.raises(DataError, match=f"{sentence} take turns, the user first and the user last"):
        read_prompts(path)


def test_only_a_line_feed_ends_a_line(tmp_path):
    text = '\ufeff{"prompt": "a\u2028b\u0085c", "response": "d"}\r\n\r\n \n{"prompt": "e", "response": "f"}'
    expected = [Demonstration("a\u2028b\u0085c", "d"), Demonstration("e", "f")]
    assert read_demonstrations(write(tmp_path, text)) == expected


LABELLED = [Labelled('"No", it said, "no"', "bad"), Labelled("fine", "good")]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", 'id,label,text\n1,bad,"""No"", it said, ""no"""\n\n2,good,fine\n'),
        ("a.TSV", 'text\tlabel\r\n"No", it said, "no"\tbad\r\nfine\tgood\r\n'),
        (
            "a.jsonl",
            '{"text": "\\"No\\", it said, \\"no\\"", "label": "bad"}\n{"label": "good", "text": "fine", "n": 1}\n',
        ),
        ("a.train", 'bad "No", it said, "no"\r\n\ngood\tfine'),
    ],
)
def test_labelled_texts_in_four_forms(tmp_path, name, text):
    assert read_labelled(write(tmp_path, text, name)) == LABELLED


@pytest.mark.parametrize(
    ("read", "columns", "expected"),
    [
        (read_demonstrations, "prompt,response", Demonstration("a", "b")),
        (read_preferences, "prompt,chosen,rejected", Preference("a", "b", "c")),
        (read_prompts, "prompt", "a"),
    ],
)
@pytest.mark.parametrize(("suffix", "separator"), [("csv", ","), ("tsv", "\t")])
def test_records_may_be_the_rows_of_a_table(tmp_path, read, columns, expected, suffix, separator):
    n = len(columns.split(","))
    rows = [["n", *columns.split(",")], ["1", *"abc"[:n]]]
    path = write(tmp_path, "".join(separator.join(row) + "\n" for row in rows), f"a.{suffix}")
    assert read(path) == [expected]
    with pytest.raises(DataError, match=r"line 1: the header is 'n'; name the columns? prompt"):
        read(write(tmp_path, "n\n1\n", f"b.{suffix}"))


def test_a_quoted_text_may_have_several_lines(tmp_path):
    path = write(tmp_path, '\ufefftext,label\n"two\r\nlines",1\r\nb,0\n', "a.csv")
    assert read_labelled(path) == [Labelled("two\r\nlines", "1"), Labelled("b", "0")]


def test_a_field_may_be_longer_than_pythons_limit(tmp_path):
    """Python's csv module refuses fields of more than 131,072 characters."""
    long = "x y" * 50_000
    for name, text in (("a.csv", f'text,label\n"{long}",1\n'), ("a.tsv", f"text\tlabel\n{long}\t1\n")):
        assert read_labelled(write(tmp_path, text, name)) == [Labelled(long, "1")]


def test_only_a_line_feed_ends_a_line_of_tsv(tmp_path):
    path = write(tmp_path, 'text\tlabel\r\none\rline \u2028 "\t1\r\nb\t0', "a.tsv")
    assert read_labelled(path) == [Labelled('one\rline \u2028 "', "1"), Labelled("b", "0")]
    path.write_bytes(b"text\tlabel\na\t1\n\xe9\t1\n")
    with pytest.raises(DataError, match="line 3: it is not UTF-8"):
        read_labelled(path)


def test_an_integer_label_is_its_digits(tmp_path):
    path = write_lines(tmp_path, {"text": "a", "label": 0}, {"text": "b", "label": "1"})
    assert [record.label for record in read_labelled(path)] == ["0", "1"]


@pytest.mark.skipif(not SST2.exists(), reason="the Stanford Sentiment Treebank is not beside the checkout")
def test_sst2_as_it_comes():
    read = read_labelled(SST2)
    assert len(read) == 6920
    assert {record.label for record in read} == {"0", "1"}
    assert read[1] == Labelled("apparently reassembled from the cutting-room floor of any given daytime soap .", "0")


words = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).map(lambda text: text + "x")


@given(st.lists(st.tuples(words, words, words), min_size=1, max_size=4))
def test_what_is_written_is_read_back_equal(tmp_path_factory, texts):
    path = tmp_path_factory.getbasetemp() / "written.jsonl"
    dialogues = [
        Conversation((Message("user", a), Message("assistant", b), Message("user", ""), Message("assistant", c)))
        for a, b, c in texts
    ]
    demonstrations = [*dialogues, *(Demonstration(a, b) for a, b, _ in texts)]
    write_records(path, demonstrations)
    assert read_demonstrations(path) == demonstrations
    preferences = [Preference(a, b, b + c) for a, b, c in texts]
    write_records(path, preferences)
    assert read_preferences(path) == preferences
    labelled = [Labelled(a, b) for a, b, _ in texts] + [Labelled("a", "another label than any")]
    write_records(path, labelled)
    assert read_labelled(path) == labelled


def test_a_group_is_not_read(tmp_path):
    write_records(tmp_path / "a.jsonl", [Labelled("a", "0", "file.py"), Labelled("b", "1", "file.py")])
    assert read_labelled(tmp_path / "a.jsonl") == [Labelled("a", "0"), Labelled("b", "1")]


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(ResourceError, match=r"no folder/a.jsonl cannot be written"):
        write_records(tmp_path / "no folder" / "a.jsonl", LABELLED)


GOOD = {
    read_demonstrations: '{"prompt": "p", "response": "r"}',
    read_preferences: '{"prompt": "p", "chosen": "c", "rejected": "r"}',
    read_prompts: '{"prompt": "p"}',
    read_labelled: '{"text": "t", "label": "l"}',
}


@pytest.mark.parametrize("read", GOOD)
@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", "it is not valid JSON (Expecting property name enclosed in double quotes"),
        ('{"a": NaN}', "it is not valid JSON (NaN is not a number); write one object a line."),
        ('["prompt"]', "it is no JSON object; write one object a line."),
    ],
)
def test_every_line_must_be_an_object(tmp_path, read, line, sentence):
    path = write(tmp_path, f"{GOOD[read]}\n\n{line}\n")
    with pytest.raises(DataError, match=re.escape(f"{path} line 3: {sentence}")):
        read(path)


@pytest.mark.parametrize("read", GOOD)
def test_what_is_no_text_with_records(tmp_path, read, monkeypatch):
    with pytest.raises(DataError, match=r"none.jsonl cannot be read \(No such file or directory\); check the path"):
        read(tmp_path / "none.jsonl")
    for name in ("a.jsonl", "a.csv", "a.txt"):
        with pytest.raises(DataError, match=rf"{name} holds no records; give a file with at least one"):
            read(write(tmp_path, " \n", name) if name != "a.csv" else write(tmp_path, "", name))
    path = tmp_path / "latin.jsonl"
    path.write_bytes(GOOD[read].encode() + b"\n\xe9t\xe9")
    with pytest.raises(DataError, match=r"latin.jsonl line 2: it is not UTF-8 \(invalid byte 0xe9\); convert the"):
        read(path)
    monkeypatch.setattr(rows, "LARGEST_FILE", 10)
    with pytest.raises(DataError, match=r"latin.jsonl is larger than"):
        read(path)


@pytest.mark.parametrize("read", GOOD)
def test_every_field_must_be_a_string(tmp_path, read):
    for name in json.loads(GOOD[read]):
        for value, problem in ((None, "is missing"), ({}, "holds {}"), (True, "holds True"), (0.5, "holds 0.5")):
            fields = {**json.loads(GOOD[read]), name: value}
            path = write_lines(tmp_path, {key: item for key, item in fields.items() if item is not None})
            with pytest.raises(DataError, match=re.escape(f"{path} line 1: the field '{name}' {problem}; write it as")):
                read(path)
        fields[name] = "cut \ud83d"
        with pytest.raises(DataError, match=r"line 1: the text has a lone surrogate \(U\+D83D\) at character 4"):
            read(write_lines(tmp_path, fields))


user, assistant, system = ({"role": role, "content": "x"} for role in ("user", "assistant", "system"))


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        ("hello", "the messages have another form; write a list of objects with role and content."),
        (["hello"], "the messages have another form; write a list of objects with role and content."),
        ([{"role": "user"}], "the field 'content' is missing; write it as a string."),
        ([{**user, "role": "bot"}], "the role 'bot' is unknown; write system, user or assistant."),
        ([], "the roles are missing; after at most one system message, let user and assistant take turns"),
        ([system], "the roles are system; after"),
        ([user], "the roles are user; after"),
        ([assistant], "the roles are assistant; after"),
        ([user, assistant, user], "the roles are user, assistant, user; after"),
        ([user, user, assistant], "the roles are user, user, assistant; after"),
        ([user, system, assistant], "the roles are user, system, assistant; after"),
        ([system, system, user, assistant], "the roles are system, system, user, assistant; after"),
        ([{**user, "content": ""}, {**assistant, "content": " "}], "the content of every message is empty; write it"),
    ],
)
def test_conversations_that_are_none(tmp_path, messages, sentence):
    path = write_lines(tmp_path, {"messages": CHAT}, {"messages": messages})
    with pytest.raises(DataError, match=re.escape(f"{path} line 2: {sentence}")):
        read_demonstrations(path)


@pytest.mark.parametrize(
    ("read", "name", "text", "sentence"),
    [
        (
            read_demonstrations,
            "a.jsonl",
            '{"prompt": " ", "response": ""}',
            "line 1: prompt and response is empty; write",
        ),
        (
            read_preferences,
            "a.jsonl",
            '{"prompt": "p", "chosen": "c", "rejected": "c"}',
            "line 1: chosen and rejected are equal, which says nothing; remove the line.",
        ),
        (read_labelled, "a.jsonl", '{"text": " ", "label": "l"}', "line 1: the text is empty; write it or remove"),
        (read_labelled, "a.jsonl", '{"text": "t", "label": ""}', "line 1: the label is empty; write it or remove"),
        (read_labelled, "a.csv", "text,label\n,1\n", "line 2: the text is empty; write it or remove the line."),
        (read_labelled, "a.txt", "1 good\n0\n", "line 2: the text is empty; write it or remove the line."),
        (
            read_labelled,
            "a.csv",
            "text,class\n",
            "line 1: the header is 'text,",
        ),
        (read_labelled, "a.csv", "text,label,text\n", "line 1: the header is 'text, label, text'; name"),
        (
            read_labelled,
            "a.csv",
            "text,label\na,b,1\n",
            "line 2: it has 3 fields but the header has 2; quote or add fields.",
        ),
        (
            read_labelled,
            "a.tsv",
            "text\tlabel\na\n",
            "line 2: it has 1 fields but the header has 2; quote or add fields.",
        ),
        (read_labelled, "a.csv", 'text,label\n"a"b,1\n', "line 2 cannot be read ("),
        (
            read_labelled,
            "a.csv",
            'text,label\n"a,1\n',
            "line 2 cannot be read (unexpected end of data); correct its quo",
        ),
        (read_labelled, "a.csv", "text,label\n", "holds no records; give a file with at least one."),
    ],
)
def test_records_that_say_nothing(tmp_path, read, name, text, sentence):
    path = write(tmp_path, text, name)
    with pytest.raises(DataError, match=re.escape(f"{path} {sentence}")):
        read(path)


def test_every_bad_line_is_named_at_once(tmp_path):
    """One message names bad lines of every kind. With a message for each, a user would
    need as many tries as there are bad lines."""
    good = {"prompt": "p", "chosen": "a", "rejected": "b"}
    path = write_lines(tmp_path, good, {**good, "rejected": "a"}, {"prompt": "p"}, [], good)
    path.write_bytes(path.read_bytes() + b'{"prompt": \xe9}\n{"prompt"\n')
    with pytest.raises(DataError) as refused:
        read_preferences(path)
    head, *lines = str(refused.value).split("\n  ")
    assert head == f"{path} has 5 bad records of 7."
    assert [line.partition(": ")[0] for line in lines] == ["line 2", "line 3", "line 4", "line 6", "line 7"]
    assert lines[0] == "line 2: chosen and rejected are equal, which says nothing; remove the line."
    assert lines[3].startswith("line 6: it is not UTF-8 (invalid byte 0xe9)")


def test_a_list_of_bad_lines_is_bounded(tmp_path):
    path = write_lines(tmp_path, *({"prompt": number} for number in range(25)))
    with pytest.raises(DataError) as refused:
        read_prompts(path)
    lines = str(refused.value).split("\n  ")
    assert len(lines) == 22
    assert lines[-1] == "and 5 more"


def test_a_file_of_another_kind_is_named_in_one_line(tmp_path):
    path = write_lines(tmp_path, *[{"text": "t", "label": "l"}] * 25)
    with pytest.raises(DataError) as refused:
        read_prompts(path)
    sentence = "the field 'prompt' is missing; write it as a string. The same holds for all 25 records."
    assert str(refused.value) == f"{path} line 1: {sentence}"


def test_white_space_around_a_label_is_no_part_of_it(tmp_path):
    """Otherwise "spam" and "spam " would be two classes."""
    lines = write_lines(tmp_path, {"text": "a", "label": "spam"}, {"text": "b", "label": " spam \t"})
    table = write(tmp_path, "text,label\na,spam\nb, spam\nc,ham\n", "a.csv")
    assert [record.label for record in read_labelled(lines)] == ["spam", "spam"]
    assert [record.label for record in read_labelled(table)] == ["spam", "spam", "ham"]


def test_a_list_of_records_with_instructions(tmp_path):
    """Sets of instructions are published in this form."""
    records = [
        {"instruction": "add", "input": "1 2", "output": "3", "chosen": "3", "rejected": "4"},
        {"instruction": "greet", "input": "", "output": "hello", "chosen": "hello", "rejected": "hello"},
        {"instruction": "wave", "output": 1, "chosen": "hi", "rejected": "ho"},
    ]
    path = write(tmp_path, json.dumps(records, indent=1), "records.json")
    assert read_prompts(path) == ["add\n1 2\n", "greet\n", "wave\n"]
    with pytest.raises(DataError, match=r"records.json record 3: the field 'output' holds 1; write it as a string"):
        read_demonstrations(path)
    with pytest.raises(DataError, match=r"records.json record 2: chosen and rejected are equal"):
        read_preferences(path)
    path = write(tmp_path, json.dumps(records[:1]), "records.json")
    assert read_demonstrations(path) == [Demonstration("add\n1 2\n", "3")]
    assert read_preferences(path) == [Preference("add\n1 2\n", "3", "4")]
    for text, sentence in (
        ("[1,", "is not valid JSON"),
        ("{}", "is no JSON list; write a list"),
        ("[7]", "record 1: it is no"),
    ):
        with pytest.raises(DataError, match=rf"records.json {sentence}"):
            read_prompts(write(tmp_path, text, "records.json"))
