"""The table of random streams: no two are equal, and no module uses another number."""

import ast
from itertools import pairwise
from pathlib import Path

import pytest

import npllm
from npllm.model import ModelConfig
from npllm.model.config import MOST_LAYERS, MOST_OUTPUTS
from npllm.model.parameters import parameter_shapes
from npllm.reference import random_streams
from npllm.reference.random_streams import BLOCK_DROPOUT, CLASS_SUBSETS, INITIAL_VALUES

TABLE = {name: value for name, value in vars(random_streams).items() if name.isupper()}
PACKAGE = Path(npllm.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
PLACE_OF_STREAM = {  # function -> its positional argument that is a stream; None = it is passed as a keyword only
    "random_words": None,
    "random_normal": None,
    "random_permutation": None,
    "DropoutKey": 2,
    "dropout_key": 0,
}


def as_range(stream: int | range) -> range:
    return stream if isinstance(stream, range) else range(stream, stream + 1)


def test_no_two_streams_are_the_same():
    ranges = sorted((as_range(stream) for stream in TABLE.values()), key=lambda numbers: numbers.start)
    for one, other in pairwise(ranges):
        assert one.stop <= other.start, (one, other)
    assert ranges[0].start >= 0
    assert ranges[-1].stop <= 2**32  # a word of the counter


def test_the_ranges_are_long_enough_for_the_largest_models():
    assert len(BLOCK_DROPOUT) >= 3 * MOST_LAYERS
    assert len(CLASS_SUBSETS) >= MOST_OUTPUTS
    for lora in ({}, {"lora_rank": 1, "lora_new_tokens": 1}):
        config = ModelConfig(n_layer=MOST_LAYERS, vocab_size=9, mlp="swiglu", tie_embeddings=False, n_outputs=1, **lora)
        assert len(parameter_shapes(config)) <= len(INITIAL_VALUES)


def test_the_numbers_are_what_they_always_were():
    """Frozen: another number would give another run from the same seed."""
    assert {name: as_range(stream).start for name, stream in TABLE.items()} == {
        "EMBEDDING_DROPOUT": 0,
        "BLOCK_DROPOUT": 1,
        "INITIAL_VALUES": 0x1000000,
        "GENERATION": 0x3000000,
        "BATCH_GENERATION": 0x3000001,
        "MINIBATCH_ORDER": 0x5000000,
        "PREFERENCE_PROMPT_ORDER": 0x6000000,
        "NEW_TOKEN_ROWS": 0x7000000,
        "PREFERENCE_SUBSET": 0x8000000,
        "REPEATED_TOKENS": 0x9000000,
        "WINDOW_GAPS": 0xDA7A0000,
        "WINDOW_ORDER": 0xDA7A0001,
        "RECORD_ORDER": 0xDA7A0002,
        "TEST_SPLIT": 0xDA7A0020,
        "TEST_CAP": 0xDA7A0021,
        "CLASS_SUBSETS": 0xDA7A0100,
        "MINIMAL_PAIRS": 0xE7A10000,
    }


def streams_chosen(tree: ast.Module) -> list[str]:
    """The places where a module uses a stream outside the table, as source text."""
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    known = {
        name.asname or name.name for node in imports for name in node.names if node.module == random_streams.__name__
    }

    def in_table(node: ast.expr) -> bool:
        node = node.value if isinstance(node, ast.Starred) else node
        node = node.value if isinstance(node, ast.Subscript) else node
        return isinstance(node, ast.Name) and node.id in known

    def is_passed_on(node: ast.expr) -> bool:
        return isinstance(node, ast.Attribute) or (isinstance(node, ast.Name) and node.id == "stream")

    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id.isupper() and "STREAM" in node.id:
            found.append(node.id)
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if name == "DropoutStreams" and not all(map(in_table, node.args)):
            found.append(ast.unparse(node))
        if name in PLACE_OF_STREAM:
            place = PLACE_OF_STREAM[name]
            given = [keyword.value for keyword in node.keywords if keyword.arg == "stream"]
            given += [] if place is None else node.args[place : place + 1]
            if not given or not all(in_table(stream) or is_passed_on(stream) for stream in given):
                found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize(
    "source",
    [
        "random_permutation(9, seed=1, stream=17)",
        "random_permutation(9, seed=1)",
        "HERE = 4 << 24\nrandom_words(9, seed=1, stream=HERE + 1)",
        "from npllm.reference.random_streams import GENERATION\nrandom_normal(9, stream=GENERATION + 1)",
        "DropoutKey(seed, step, 3, first=0)",
        "context.dropout_key(1 + layer, 9)",
        "DropoutStreams(1, 2, 3)",
        "SHUFFLE_STREAM = 5",
    ],
)
def test_a_number_chosen_by_hand_is_seen(source):
    assert len(streams_chosen(ast.parse(source))) == 1


def test_nobody_else_chooses_a_stream():
    found = {path.relative_to(PACKAGE).as_posix(): streams_chosen(ast.parse(path.read_text())) for path in MODULES}
    assert len(found) > 100
    assert {module: chosen for module, chosen in found.items() if chosen} == {}
