"""The split: no record is held out that shares something with a training record."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from npllm.data.records import Conversation, Demonstration, Labelled, Message, Preference
from npllm.data.splitting import grouped, split_records
from npllm.errors import ConfigError, DataError

few = st.sampled_from(["a", "b", " b", "c\n", "d", ""])
demonstrations = st.builds(Demonstration, few, few)
preferences = st.builds(Preference, few, few, few)
labelled = st.builds(Labelled, few.filter(bool), st.sampled_from("xy"), st.sampled_from(["", "f.py", "g.py"]))
conversations = st.lists(few, min_size=2, max_size=4).map(
    lambda said: Conversation((Message("user", said[0]), *(Message("assistant", text) for text in said[1:])))
)


def shared(record) -> set[str]:
    """What a record shares with others, so that they must be on the same side.

    It is computed here independently of the module.
    """
    match record:
        case Demonstration(prompt, response):
            return {f"p{prompt.strip()}"} if prompt.strip() else {f"r{response.strip()}"}
        case Preference(prompt, chosen, rejected):
            return {f"p{prompt.strip()}"} if prompt.strip() else {f"r{chosen.strip()}", f"r{rejected.strip()}"}
        case Labelled(text, _, group):
            return {f"t{text.strip()}", f"g{group}"} - {"g"}
        case Conversation(messages):
            first, last = messages[0].content.strip(), messages[-1].content.strip()
            return {f"p{first}"} if first else {f"r{last}"}


@given(
    st.one_of(*(st.lists(kind, min_size=2, max_size=30) for kind in (demonstrations, preferences, labelled)))
    | st.lists(conversations, min_size=2, max_size=30),
    st.floats(0.01, 0.99),
    st.integers(0, 2**64 - 1),
)
def test_nothing_is_on_both_sides_and_nothing_is_lost(records, val_fraction, seed):
    """This holds for every order of the records."""
    if len(grouped(records)) < 2:
        with pytest.raises(DataError, match="the same prompt, or responses in common, so that none"):
            split_records(records, val_fraction, seed)
        return
    train, val = split_records(records, val_fraction, seed)
    assert train
    assert val
    assert sorted(map(repr, [*train, *val])) == sorted(map(repr, records))
    of_train, of_val = (set().union(*map(shared, side)) for side in (train, val))
    asked = {next((name for name in shared(record) if name.startswith("p")), "") for record in records}
    one_for_all = len(asked) == 1
    assert {name for name in of_train & of_val if not (one_for_all and name.startswith("p"))} == set()
    mixed = random.Random(0).sample(records, len(records))
    assert sorted(map(repr, split_records(mixed, val_fraction, seed)[1])) == sorted(map(repr, val))


@given(st.integers(2, 60), st.floats(0.01, 0.99), st.integers(0, 2**64 - 1))
def test_of_prompts_that_occur_once_the_share_is_held_out(n, val_fraction, seed):
    records = [Demonstration(f"prompt {i}", "response") for i in range(n)]
    train, val = split_records(records, val_fraction, seed)
    assert abs(len(val) - n * val_fraction) <= 1
    assert train == sorted(train, key=records.index)
    assert val == sorted(val, key=records.index)


def test_of_groups_of_many_sizes_the_share_is_met_nearly():
    records = [Demonstration(f"prompt {i}", f"{j}") for i in range(40) for j in range(1 + i % 5)]
    for seed in range(20):
        _, val = split_records(records, 0.1, seed)
        assert abs(len(val) - 0.1 * len(records)) <= 1


def test_one_prompt_for_all_tells_nothing_apart():
    """A task may have a single prompt. Then a response must not be on both sides."""
    records = [Preference("write a poem", f"good {i // 2}", f"bad {i // 2}") for i in range(40)]
    train, val = split_records(records, 0.1, 0)
    assert len(val) == 4
    assert not {record.chosen for record in train} & {record.chosen for record in val}


def test_one_large_group_is_learnt_from():
    """It is not held out, even when it comes first."""
    records = [Demonstration("often", f"{i}") for i in range(90)] + [Demonstration(f"{i}", "once") for i in range(10)]
    for seed in range(20):
        assert len(split_records(records, 0.1, seed)[1]) == 10 or len(split_records(records, 0.1, seed)[1]) == 9


def test_later_records_hardly_move_earlier_ones():
    records = [Demonstration(f"prompt {i}", "response") for i in range(1000)]
    before, after = (set(split_records(part, 0.1, seed=1)[1]) for part in (records[:900], records))
    assert len(before - after) <= 10


def test_the_split_is_random_and_frozen():
    records = [Demonstration(letter, "response") for letter in "abcdefghij"]
    held_out = ["".join(record.prompt for record in split_records(records, 0.3, seed)[1]) for seed in (1, 2, 3)]
    assert held_out == ["chj", "bgj", "bcg"]


def test_a_split_that_cannot_be():
    with pytest.raises(DataError, match="the data has 1 records, too few to train and validate on; give at least two"):
        split_records([Demonstration("a", "b")], 0.5, 0)
    for val_fraction in (0, 1, float("nan")):
        with pytest.raises(ConfigError, match="data.val_fraction is .*; give a number between 0 and 1"):
            split_records([Demonstration("a", "b"), Demonstration("b", "b")], val_fraction, 0)
