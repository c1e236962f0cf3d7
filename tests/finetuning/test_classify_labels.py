"""Which texts a classifier is trained on, and which it is tested on."""

import numpy as np

from npllm.data.records import Labelled
from npllm.data.topics import stdlib_topics
from npllm.finetuning.classifier import encode_texts
from npllm.finetuning.labels import balanced_subset, capped, split_by_group
from npllm.tokenizer import byte_tokenizer


def test_whole_files_are_held_out_and_as_many_as_fit():
    records = [Labelled(f"{label} {i}", label, f"{label}/{i // 3}.py") for i in range(30) for label in "ab"]
    train, test = split_by_group(records, 0.25, seed=1)
    assert sorted([*train, *test], key=records.index) == records
    assert not {record.group for record in train} & {record.group for record in test}
    for label in "ab":
        assert sum(record.label == label for record in test) == 6  # of 7.5
    assert split_by_group(records, 0.25, seed=1) == (train, test)
    assert split_by_group(records, 0.25, seed=2) != (train, test)


def test_where_every_file_is_too_large_the_smallest_is_held_out():
    sizes = {"large.py": 6, "small.py": 4}
    records = [Labelled(f"{name} {i}", "a", name) for name, size in sizes.items() for i in range(size)]
    _, test = split_by_group(records, 0.1, seed=0)
    assert {record.group for record in test} == {"small.py"}


def test_a_text_without_a_file_is_a_group_of_its_own():
    records = [Labelled(str(i), label) for i in range(50) for label in "ab"]
    train, test = split_by_group(records, 0.1, seed=3)
    assert [sum(record.label == label for record in test) for label in "ab"] == [5, 5]
    assert len(train) == 90


def test_the_embedded_texts_leave_512_of_each_class_to_learn_from():
    train, test = split_by_group(stdlib_topics(), 0.2, seed=0)
    for label in {record.label for record in train}:
        n_train, n_test = (sum(record.label == label for record in side) for side in (train, test))
        assert n_train >= 512
        assert 0.1 < n_test / (n_train + n_test) <= 0.2


def test_a_cap_takes_from_everywhere_and_keeps_the_order():
    kept = capped(list(range(1000)), 100, seed=0)
    assert kept == sorted(set(kept))
    assert len(kept) == 100
    assert 400 < np.mean(kept) < 600
    assert capped([1, 2], 100, seed=0) == [1, 2]


def test_subsets_are_balanced_nested_and_differ_with_the_seed():
    labels = np.random.default_rng(0).integers(0, 3, 300)
    small, large = (balanced_subset(labels, n, seed=5) for n in (8, 32))
    assert np.bincount(labels[small]).tolist() == [8, 8, 8]
    assert np.bincount(labels[large]).tolist() == [32, 32, 32]
    assert len(set(large)) == 96
    assert set(small) < set(large)
    assert set(small) != set(balanced_subset(labels, 8, seed=6))


def test_a_long_text_keeps_its_end():
    tokenizer = byte_tokenizer()
    texts = encode_texts([Labelled("abcdef", "y"), Labelled("ab", "x")], ["x", "y"], tokenizer, block_size=3)
    assert [tokenizer.decode(ids.tolist()) for ids in texts.tokens] == ["def", "ab"]
    assert texts.labels.tolist() == [1, 0]


def test_equal_texts_lie_on_one_side_whatever_their_labels():
    """A model that was trained on a text knows it in the test, whatever its label."""
    records = [Labelled(f"text {i % 20}{' ' * (i // 40)}", "ab"[i // 20 % 2]) for i in range(80)]
    for seed in range(5):
        train, test = split_by_group(records, 0.25, seed)
        assert not {record.text.strip() for record in train} & {record.text.strip() for record in test}
        assert [sum(record.label == label for record in test) for label in "ab"] == [10, 10]
        backwards = split_by_group(records[::-1], 0.25, seed)
        assert [side[::-1] for side in backwards] == [train, test]
