"""`npllm plan`: what it prints, from one million to 70 billion parameters."""

import re

import numba
import pytest
from small_runs import refused, run

from npllm.memory import aligned
from npllm.model import GPT
from npllm.planning import speed
from npllm.planning.verb import CHARACTERS, recipe_in, vocabulary_of
from npllm.tokenizer import byte_tokenizer
from npllm.training.config import DataConfig

LARGE = """
[data]
vocab_size = 128256

[model]
n_layer = 84
n_head = 64
n_embd = 8192
block_size = 4096
norm = "rmsnorm"
position = "rotary"
mlp = "swiglu"
bias = false
tie_embeddings = false

[batch]
size = 1024
micro_size = 1
"""
GIVEN = ("--flops", "1e13", "--memory_bandwidth", "100", "--memory", "80")
SIZES = {  # n_layer, n_head, n_embd of 1 M, 94 M and 1.3 G parameters
    "1.0[0-9] M": (4, 4, 128),
    "93.6 M": (13, 12, 768),
    "1.26 G": (25, 16, 2048),
}


@pytest.fixture
def nothing_is_built(monkeypatch):
    """A plan with --flops computes with shapes alone."""

    def fail(*_, **__):
        pytest.fail("it allocates a model")

    monkeypatch.setattr(GPT, "__init__", fail)
    monkeypatch.setattr("npllm.model.parameters.aligned_zeros", fail)
    monkeypatch.setattr(aligned, "aligned_zeros", fail)
    monkeypatch.setattr(speed, "measure_flops", fail)


def plan(capsys, *words) -> str:
    capsys.readouterr()
    threads = numba.get_num_threads()
    assert run("plan", *words) == 0
    assert numba.get_num_threads() == threads
    return capsys.readouterr().out


@pytest.mark.usefixtures("nothing_is_built")
def test_70_billion_parameters(tmp_path, capsys):
    """All that the page of the plan promises, by hand: 69.8 G weights of 4 bytes, half
    of each 2 p'th sent, and no room for them."""
    (tmp_path / "large.toml").write_text(LARGE)
    shown = plan(capsys, tmp_path / "large.toml", "--ranks", "1024", *GIVEN)
    assert "69.8 G parameters" in shown
    assert re.search(r"weights +279 GB", shown)
    assert re.search(r"moments, 1/1024 of them +545 MB", shown)
    rows = re.findall(r"^ *([\d,]+) +([\d,]+) .* (\d+)% +(\S+ G?B) +(\d+)%$", shown, re.MULTILINE)
    assert [row[:2] for row in rows] == [(f"{2**i:,}", f"{2 ** (10 - i):,}") for i in range(11)]
    assert rows[0][2:] == ("100", "0 B", "0")
    assert rows[1][3] == "279 GB"
    assert rows[-1][3] == "558 GB"
    assert re.search(r"From 2,048 ranks .* below one half, to 4\d\.\d%: no micro-batches are left", shown)
    assert "data parallel alone cannot train it" in shown
    assert re.search(r"tensor parallel, every matrix divided between \d+ ranks", shown)
    assert re.search(r"pipeline parallel: \d+ groups of layers", shown)


@pytest.mark.usefixtures("nothing_is_built")
@pytest.mark.parametrize("size", SIZES)
def test_smaller_models_and_fields_on_the_command_line(capsys, size):
    fields = dict(zip(("n_layer", "n_head", "n_embd"), SIZES[size], strict=True))
    options = [word for name, value in fields.items() for word in (f"--model.{name}", value)]
    shown = plan(capsys, "default", *options, "--batch.size", "64", "--ranks", "2", *GIVEN)
    assert re.match(rf"default: {size} parameters", shown)
    assert "64 sequences of 128 tokens, 8 micro-batches of up to 8" in shown
    assert "Every rank keeps whole weights and gradients, 20 bytes for a parameter, so 80 GB" in shown


@pytest.mark.usefixtures("nothing_is_built")
def test_idle_ranks_and_a_ramp_are_said(capsys):
    shown = plan(capsys, "classic", "--ranks", "8", *GIVEN)
    assert "so 4 of 8 ranks would have nothing to do, and npllm refuses to start them." in shown
    assert re.search(r"While the batch grows from 8 sequences, the efficiency is \d+%", shown)
    assert "A batch has" not in plan(capsys, "classic", "--ranks", "4", *GIVEN)


@pytest.mark.usefixtures("nothing_is_built")
def test_a_slow_network_is_the_reason(capsys):
    """With 1 MB per second the weights take longer than sixteen micro-batches."""
    shown = plan(capsys, "--batch.size", "128", "--ranks", "2", "--bandwidth", "1e-3", *GIVEN)
    assert re.search(r"From 2 ranks .* below one half, to \d+\.\d%: .* of communication and additions stand", shown)
    assert "take a faster network" in shown


@pytest.mark.usefixtures("nothing_is_built")
def test_an_unknown_vocabulary_is_said(capsys):
    said = f"the vocabulary is taken to be {CHARACTERS} characters"
    assert said in plan(capsys, "shakespeare-char", "--ranks", "1", *GIVEN)
    assert said not in plan(capsys, "default", "--ranks", "1", *GIVEN)


def test_the_machine_is_measured(capsys, monkeypatch):
    monkeypatch.setattr(speed, "measure_flops", lambda *_: 2.5e9)
    monkeypatch.setattr(speed, "measure_memory", lambda: 7e9)
    shown = plan(capsys, "--ranks", "2", "--ranks_per_host", "2")
    assert "a rank computes 2.5 GFLOP/s and adds arrays at 7 GB/s" in shown
    assert "ranks on a host: 2" in shown


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--ranks", "3"], "--ranks is 3; give a power of two from 1 to 65536."),
        (["--ranks", "0"], "--ranks is 0; give a power of two"),
        (["--ranks", "131072"], "--ranks is 131072; give a power of two"),
        (["--ranks_per_host", "-2"], "--ranks_per_host is -2; give a power of two"),
        (["--bandwidth", "-1"], "--bandwidth is -1.0; set it above 0."),
        (["--latency", "nan"], "--latency is nan; set it to at least 0."),
        (["--flops", "0"], "--flops is 0.0; set it above 0."),
        (["--memory", "inf"], "--memory is inf; set it above 0."),
        (["--model.n_embd", "7"], "model.n_embd = 7 cannot be divided"),
        (["--rank", "2"], "did you mean '--ranks'"),
        (["no-such-recipe"], "no-such-recipe is neither a TOML file nor a recipe"),
    ],
    ids=" ".join,
)
def test_bad_input_is_one_sentence(capsys, words, complaint):
    assert complaint in refused(capsys, "plan", *words, exit_code=2)


def test_the_recipe_among_the_arguments():
    assert recipe_in(["a.toml", "--ranks", "2"]) == "a.toml"
    assert recipe_in(["--ranks", "2", "a.toml", "b"]) == "a.toml"
    assert recipe_in(["--ranks=2", "a.toml"]) == "a.toml"
    assert recipe_in(["--ranks", "2", "--", "a.toml"]) == "a.toml"
    assert recipe_in(["--ranks", "2"]) is None


def test_vocabularies(tmp_path):
    byte_tokenizer().save(tmp_path)
    expected = {"bpe": 2048, "char": CHARACTERS, "byte": byte_tokenizer().vocab_size}
    expected[str(tmp_path)] = byte_tokenizer().vocab_size
    assert {name: vocabulary_of(DataConfig(tokenizer=name)) for name in expected} == expected
