"""From TOML and command line to a config and back."""

import tomllib
from dataclasses import asdict, replace
from importlib import resources

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from small_runs import refused, run
from tyro.conf import Positional

from npllm.errors import ConfigError, DataError
from npllm.model.config import LONGEST_BLOCK, MOST_LAYERS
from npllm.optim.config import LARGEST_BATCH
from npllm.runs.arguments import parse_arguments
from npllm.runs.config_file import config_text, load_config
from npllm.training import stage
from npllm.training.config import DataConfig, RunConfig, TrainConfig, load_recipe
from npllm.training.spikes import SpikeConfig

RECIPES = sorted(path.name.removesuffix(".toml") for path in (resources.files("npllm") / "recipes").iterdir())

positive = st.floats(min_value=1e-300, max_value=1e300)
counts = st.integers(1, 10**6)
texts = st.text(st.characters(codec="utf-8"), max_size=12).filter(lambda text: not text.startswith("-"))


@st.composite
def run_configs(draw):
    """Any config. Fields that are not drawn from their whole range depend on others."""
    size, n_kv_head, groups = draw(st.integers(1, LARGEST_BATCH)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    n_head, lr = n_kv_head * groups, draw(positive)
    config = RunConfig()
    return RunConfig(
        data=DataConfig(
            source=tuple(draw(st.lists(texts, min_size=1, max_size=3))),
            tokenizer=draw(texts),
            vocab_size=draw(counts),
            split=draw(st.sampled_from(["gpt2", "cl100k", "llama3"])),
            val_fraction=draw(st.floats(min_value=1e-300, max_value=0.999)),
        ),
        model=replace(
            config.model,
            n_layer=draw(st.integers(1, MOST_LAYERS)),
            n_head=n_head,
            n_kv_head=draw(st.sampled_from([None, n_kv_head])),
            n_embd=2 * n_head * draw(st.integers(1, 100)),
            block_size=draw(st.integers(1, LONGEST_BLOCK)),
            norm=draw(st.sampled_from(["layernorm", "rmsnorm"])),
            position=draw(st.sampled_from(["learned", "rotary"])),
            qk_norm=draw(st.booleans()),
            mlp=draw(st.sampled_from(["gelu", "swiglu", "relu2"])),
            bias=draw(st.booleans()),
            tie_embeddings=draw(st.booleans()),
            dropout=draw(st.floats(min_value=0, max_value=0.999)),
        ),
        optim=replace(
            config.optim,
            name=draw(st.sampled_from(["adamw", "muon", "adam", "sgd"])),
            lr=lr,
            min_lr=draw(st.sampled_from([0.0, lr / 3, lr])),
            warmup_steps=draw(st.integers(0, 10**6)),
            decay=draw(st.sampled_from(["cosine", "linear", "constant", "inverse_sqrt", "wsd"])),
            cooldown=draw(st.floats(min_value=0.01, max_value=1.0)),
            beta1=draw(st.floats(min_value=0, max_value=0.9999)),
            eps=draw(positive),
            weight_decay=draw(st.just(0.0) | positive),
        ),
        batch=replace(
            config.batch,
            size=size,
            micro_size=draw(counts),
            ramp_start=draw(st.none() | st.integers(1, size)),
            ramp_steps=draw(st.integers(0, 10**6)),
        ),
        train=TrainConfig(
            steps=draw(st.none() | counts),
            minutes=draw(positive),
            keep=draw(counts),
            seed=draw(st.integers(0, 2**64 - 1)),
            dtype=draw(st.sampled_from(["float32", "float64"])),
            threads=draw(st.none() | counts),
        ),
        spikes=SpikeConfig(
            enabled=draw(st.booleans()),
            window=draw(st.integers(64, 10**6)),
            sigma=draw(positive),
            margin=draw(st.integers(0, 10**6)),
            max_rollbacks=draw(st.integers(0, 10**6)),
        ),
    )


@pytest.fixture
def started(monkeypatch):
    """The config with which `npllm pretrain ARGUMENTS` would start."""
    configs = []

    def start_run(stage, config, out, console, **arguments):
        configs.append(stage.inputs(config, console, **arguments).config)

    monkeypatch.setattr(stage, "start_run", start_run)

    def start(*arguments):
        assert run("pretrain", *arguments) == 0
        return configs[-1]

    return start


def with_data(**changes) -> RunConfig:
    return RunConfig(data=DataConfig(**changes))


@given(run_configs(), st.dictionaries(st.sampled_from(["cpu", "stage"]), texts))
@example(with_data(source=("quote\" and 'quote'", "back\\slash", "new\nline\ttab", "")), {})
@example(with_data(source=("müller/日本/🦜.txt",), tokenizer="🦜\x7f\u2028\x00\x1b"), {"cpu": '"\\🦜'})
@example(with_data(separator="\n\n---\t\"'\\\n", field=" text"), {})
@example(with_data(separator="---", field="--data.source"), {})
@example(with_data(source=("a=b", "#c", "[d]", "None", "1", "True")), {})
def test_a_config_survives_being_written_and_read(tmp_path_factory, config, record):
    path = tmp_path_factory.getbasetemp() / "config.toml"
    path.write_bytes(config_text(config, record).encode())
    assert load_config(path, RunConfig) == config
    assert tomllib.loads(path.read_text(encoding="utf-8"))["run"] == record


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_read_completely(name):
    config = load_recipe(name)
    tables = tomllib.loads((resources.files("npllm") / "recipes" / f"{name}.toml").read_text())
    for section, table in tables.items():
        for field, value in table.items():
            expected = tuple(value) if isinstance(value, list) else value
            assert asdict(config)[section][field] == expected, (section, field)


def test_an_option_wins_over_the_recipe_and_the_recipe_over_the_default(started):
    config = started("--recipe", "shakespeare-char", "--optim.lr", "0.5", "--data.source", "mine.txt", "b.txt")
    assert config.optim.lr == 0.5
    assert config.data.source == ("mine.txt", "b.txt")  # replaces the recipe's list
    assert config.optim.beta2 == 0.99  # the recipe's; the default is 0.95
    assert config.optim.eps == 1e-8  # the default
    assert started("--recipe", "classic", "--batch.ramp_start", "None").batch.ramp_start is None  # the recipe's is 8


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], (3e-3, 3e-4, 32, 8, 128, 64)),  # the recipe classic
        (["--optim.lr", "1e-4", "--batch.size=4", "--spikes.window", "32"], (1e-4, 1e-5, 4, 1, 32, 16)),
        (["--optim.lr", "0.5", "--batch.size", "64", "--spikes.window=500"], (0.5, 3e-4, 64, 8, 500, 64)),
        (["--optim.lr", "3e-4", "--optim.min_lr", "2e-4"], (3e-4, 2e-4, 32, 8, 128, 64)),
        (["--batch.size", "1"], (3e-3, 3e-4, 1, 1, 128, 64)),
    ],
)
def test_a_default_follows_an_option_that_it_would_contradict(started, arguments, expected):
    """In proportion: 1e-4 instead of 3e-3 makes 3e-4 to 1e-5. What the user has set
    stays."""
    optim, batch, spikes = (
        getattr(started("--recipe", "classic", *arguments), name) for name in ("optim", "batch", "spikes")
    )
    found = (optim.lr, optim.min_lr, batch.size, batch.ramp_start, spikes.window, spikes.min_history)
    assert found == expected


def test_a_default_follows_a_recipe_too(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[optim]\nlr = 2e-5\n[spikes]\nwindow = 10\n")
    config = load_config(path, RunConfig)
    assert (config.optim.min_lr, config.spikes.min_history) == (2e-6, 5)


def test_options_that_contradict_each_other_are_refused(capsys):
    for options in (["--optim.lr", "1e-4", "--optim.min_lr", "3e-4"], ["--batch.size=4", "--batch.ramp_start=8"]):
        assert options[-2].lstrip("-").split("=")[0] in refused(capsys, "pretrain", *options, exit_code=2)


def test_a_file_can_be_the_recipe(started, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[model]\nn_layer = 7\nbias = false\n[optim]\nlr = 1\n[train]\nsteps = 5\n")
    config = started(f"--recipe={path}")
    assert (config.model.n_layer, config.model.bias, config.optim.lr, config.train.steps) == (7, False, 1.0, 5)
    assert config.model.n_head == RunConfig().model.n_head


def test_minutes_replace_the_number_of_steps(started):
    assert started("--recipe", "shakespeare-char").train.steps == 1600
    config = started("--recipe", "shakespeare-char", "--minutes", "0.5")
    assert (config.train.steps, config.train.minutes) == (None, 0.5)


@pytest.mark.parametrize(
    ("toml", "complaint"),
    [
        ("[model]\nn_layr = 2", "model.n_layr is not a field; did you mean 'model.n_layer'"),
        ("[modle]\nn_layer = 2", "modle.n_layer is not a field; did you mean 'model.n_layer'"),
        ("n_layer = 2", "n_layer is not a field"),
        ("[model.n_layer]\nx = 2", "n_layer"),
        ('[model]\nn_layer = "many"', "n_layer"),
        ("[model]\nn_layer = 1.5", "n_layer"),
        ("[model]\nn_layer = [1, 2]", "2"),
        ("[model]\nn_layer = true", ", line 2: model.n_layer is true; write a whole number without quotes."),
        ('[model]\n# n_layer = 1\n\nn_layer = "1"', ', line 4: model.n_layer is "1"; write a whole number'),
        ("[model]\nn_layer = 4.0", ", line 2: model.n_layer is 4.0"),
        ("[model]\nbias = 1", ", line 2: model.bias is 1; write true or false."),
        ("[model]\nnorm = 3", ", line 2: model.norm is 3; write a text in quotes."),
        ('[model]\nnorm = "bacth"', ", line 2: "),
        ('[train]\nsteps = "2"', ", line 2: train.steps is"),
        ("[train]\nsteps = 2020-01-01", ", line 2: train.steps is"),
        ('[optim]\nlr = "1e-3"', ", line 2: optim.lr is"),
        ("[optim]\nlr = 1\nmin_lr = 3", ", line 3: optim.min_lr = 3.0 is above optim.lr"),
        ("[data]\nsource = [1]", ", line 2: data.source is [1]; write a list of texts in quotes."),
        ("model.n_layer = 0", ", line 1: model.n_layer is 0"),
        ("[model]\nn_layr = 2", ", line 2: model.n_layr is not a field"),
        ('[data]\nsource = """\n[model]\nn_layer = 1"""\n[model]\nn_layer = "x"', ", line 6: model.n_layer"),
        ('[model]\nbias = "maybe"', "bias"),
        ("[model]\nn_layer = 0", "n_layer is 0"),
        ("[optim]\nlr = inf", "optim.lr is inf"),
        ("[optim]\nlr = nan", "optim.lr is nan"),
        ('[optim]\ndecay = "steep"', "decay"),
        ("[train]\nminutes = inf", "train.minutes is inf"),
        ("[data]\nsource = []", "data.source is empty"),
        ('[data]\nsource = ["--out"]', "--out"),
    ],
)
def test_a_bad_field_is_named_with_its_file(tmp_path, toml, complaint):
    path = tmp_path / "recipe.toml"
    path.write_text(toml)
    with pytest.raises(ConfigError) as caught:
        load_config(path, RunConfig)
    assert complaint in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"[model\n", "is not valid TOML"),
        (b"n_layer 2", "is not valid TOML"),
        (b"\x00\x01\x02", "is not valid TOML"),
        (b"\xff\xfe[\x00", "is UTF-16 text"),
        (b"[model]\n# \xfc", "is not UTF-8 .* in line 2"),
    ],
)
def test_a_file_that_is_no_toml_is_named(tmp_path, data, complaint):
    path = tmp_path / "config.toml"
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"config\.toml {complaint}"):
        load_config(path, RunConfig)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--model.n_layr", "2"], "--model.n_layr is not an option of npllm pretrain; did you mean '--model.n_layer'"),
        (["--model.n_layer", "x"], "--model.n_layer"),
        (["--model.n_layer", "1", "2"], "2"),
        (["--model.n_layer"], "--model.n_layer"),
        (["--model.bias", "maybe"], "'maybe' for argument '--model.bias'"),
        (["--model.norm", "batchnorm"], "--model.norm"),
        (["--model.n_head", "3"], "heads of equal width; set model.n_embd to 132, or model.n_head to 2."),
        (["--model.n_embd", "102"], "set model.n_embd to 104, or model.n_head to 3."),
        (["--model.n_embd", "100"], "is 25, which is odd; set model.n_embd to 104, or model.n_head to 2."),
        (["--model.n_kv_head", "3"], "model.n_kv_head = 3 does not divide model.n_head = 4"),
        (["--train.steps", "soon"], "Error parsing --train.steps: no type matching INT or none"),
        (["--train.steps", "0"], "train.steps is 0"),
        (["--train.seed", str(2**64)], "train.seed"),
        (["--train.threads", "99999"], "train.threads is 99999"),
        (["--minutes", "inf"], "train.minutes is inf"),
        (["--minutes", "0"], "train.minutes is 0"),
        (["--optim.lr", "inf"], "optim.lr is inf"),
        (["--data.source"], "data.source is empty"),
        (["--data.source=-x"], "'-x', which looks like an option; write ./-x"),
        (["--data.source", "caf\udce9.txt"], "not valid Unicode"),
        (["--data.val_fraction", "1"], "data.val_fraction is 1"),
        (["--data.separator", ""], "data.separator is ''; give at least one character"),
        (["--data.field", "caf\udce9"], "data.field is 'caf\\udce9', which is not valid Unicode"),
        (["--recipe", "shakespear-char"], "did you mean 'shakespeare-char'"),
        (["--recipe"], "--recipe"),
        (["loose"], "loose"),
    ],
)
def test_bad_options_end_in_one_sentence_and_write_nothing(capsys, tmp_path, monkeypatch, arguments, complaint):
    monkeypatch.chdir(tmp_path)
    message = refused(capsys, "pretrain", *arguments, exit_code=2)
    assert complaint in message
    assert "class " not in message  # tyro's own words about Python's types
    assert list(tmp_path.iterdir()) == []


def test_the_help_shows_the_values_of_the_recipe(capsys, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[model]\nn_layer = 77\n")
    assert run("pretrain", "--recipe", path, "--help") == 0
    assert "(default: 77)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--spikes.enabled"], True),
        (["--spikes.enabled", "--train.steps", "3"], True),
        (["--spikes.enabled", "False"], False),
        (["--spikes.enabled=False"], False),
    ],
)
def test_an_option_that_stands_alone_is_true(arguments, expected):
    defaults = ["--spikes.enabled", "False", *arguments]
    assert parse_arguments(RunConfig, defaults, prog="test").spikes.enabled is expected


def test_an_option_that_has_none_takes_the_word_as_the_help_spells_it():
    arguments = ["--batch.ramp_start", "none", "--train.steps=none", "--data.separator", "none"]
    assert parse_arguments(RunConfig, arguments, prog="test") == RunConfig()


def test_none_stays_a_word_where_text_is_wanted():
    config = parse_arguments(RunConfig, ["--data.source", "none", "--data.tokenizer=none"], prog="test")
    assert (config.data.source, config.data.tokenizer) == (("none",), "none")

    def encode(tokenizer: Positional[str], text: Positional[str | None] = None) -> str | None:
        return text

    assert parse_arguments(encode, ["tokenizer.json", "none"], prog="test") == "none"
