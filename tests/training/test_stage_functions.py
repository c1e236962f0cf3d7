"""The stages as Python functions: the same runs and the same messages as the verbs."""

import inspect
import threading

import numpy as np
import pytest
from small_runs import pretrain_arguments, run, state_digests, stop_after, untimed_metrics, write_text
from stage_runs import DEMONSTRATIONS, write_jsonl

import npllm
from npllm.errors import ConfigError, Interrupted
from npllm.runs.arguments import options_of
from npllm.training.stage_verb import verb_of
from npllm.training.stages import STAGES, load_stage

# The same run as `pretrain_arguments` makes, with dicts in place of options.
SECTIONS = {
    "data": {"tokenizer": "char", "val_fraction": 0.1},
    "model": {"n_layer": 1, "n_head": 2, "n_embd": 8, "block_size": 8},
    "optim": {"warmup_steps": 2},
    "batch": {"size": 4, "micro_size": 2, "ramp_start": None, "ramp_steps": 0},
    "train": {"steps": 6, "eval_every": 2, "checkpoint_every": 4},
}
LOOKS = {"train__eval_every": 2, "train__checkpoint_every": 4}

pytestmark = pytest.mark.usefixtures("quick")


def pretrained(folder, name="run", **changes) -> npllm.Run:
    """A tiny run that a call makes."""
    sections = SECTIONS | {"recipe": "classic", "quiet": True} | changes
    return npllm.pretrain(write_text(folder), out=folder / name, **sections)


def test_a_call_makes_the_run_of_the_command_line_whatever_callbacks_do(tmp_path):
    """A wrong default, or a callback that can change what is recorded, would show in
    the config, the metrics or the weights."""
    looks = []
    called = pretrained(tmp_path, spikes=None, on_step=dict.clear, on_evaluation=looks.append)
    assert [record["step"] for record in looks] == [2, 4, 6]
    assert run(*pretrain_arguments(write_text(tmp_path), tmp_path / "verb", **LOOKS)) == 0
    verb = npllm.Run(tmp_path / "verb")
    assert called.config == verb.config
    assert untimed_metrics(called.path) == untimed_metrics(verb.path)
    assert state_digests(called.path) == state_digests(verb.path)


def test_callbacks_get_the_lines_of_the_log(tmp_path):
    steps, looks = [], []
    made = pretrained(tmp_path, on_step=steps.append, on_evaluation=looks.append)
    assert [record["step"] for record in steps] == [1, 2, 3, 4, 5, 6]
    assert [record["loss"] for record in steps] == made.metrics["loss"].tolist()
    assert [(record["step"], record["val_loss"]) for record in looks] == [
        (step, made.metrics["val_loss"][step - 1]) for step in (2, 4, 6)
    ]


def test_an_exception_of_a_callback_loses_nothing(tmp_path):
    """It reaches the caller, and the run ends with the bits of one that never
    stopped."""

    def fail(record):
        if record["step"] == 4:
            raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        pretrained(tmp_path, on_step=fail)
    assert repr(npllm.Run(tmp_path / "run")).endswith("step 4 of 6)")
    again = []
    resumed = npllm.resume(tmp_path / "run", on_step=lambda record: again.append(record["step"]), quiet=True)
    assert again == [5, 6]
    assert state_digests(resumed.path) == state_digests(pretrained(tmp_path, "straight").path)


def test_a_stop_saves_the_run_and_says_how_to_go_on(tmp_path, monkeypatch):
    """A notebook's stop button sends SIGINT."""
    stop_after(monkeypatch, 3)
    seen = []
    with pytest.raises(Interrupted, match=r"^Stopped and saved after step 3; go on with: npllm resume .*run$"):
        pretrained(tmp_path, on_step=lambda record: seen.append(record["step"]))
    assert seen == [1, 2, 3]
    assert npllm.resume(tmp_path / "run", quiet=True).summary["steps"] == 6


@pytest.mark.usefixtures("clock")
def test_a_finished_run_is_extended(tmp_path):
    made, steps = pretrained(tmp_path), []
    further = npllm.extend(made, 1 / 12, on_step=lambda record: steps.append(record["step"]), quiet=True)
    assert steps[0] == 7
    assert further.summary["steps"] == steps[-1] == len(further.metrics["step"])


def test_training_works_in_a_thread_that_gets_no_signals(tmp_path):
    made = []
    thread = threading.Thread(target=lambda: made.append(pretrained(tmp_path)))
    thread.start()
    thread.join()
    assert made
    assert made[0].summary["steps"] == 6


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"model": {"n_layr": 1}}, "model.n_layr is not a field; did you mean 'model.n_layer'."),
        ({"n_layer": 1}, "n_layer is not a field; did you mean 'model.n_layer'."),
        ({"model": {"n_layer": "1"}}, 'model.n_layer is "1"; write a whole number without quotes.'),
        ({"model": {"n_layer": 0}}, "model.n_layer is 0; set it to at least 1."),
        ({"model": {"n_embd": np.int64(7)}}, "model.n_embd = 7 cannot be divided into model.n_head = 2 heads"),
        ({"train": {"steps": None, "minutes": "2"}}, 'train.minutes is "2"; write a number without quotes.'),
        ({"recipe": "clasic"}, "clasic is neither a TOML file nor a recipe; did you mean 'classic'"),
        ({"data": "notes/"}, "data is 'notes/'; give a dict of its fields."),
        ({"data": {"source": "x"}}, "The source is given twice, alone and in data; leave out one of them."),
    ],
    ids=str,
)
def test_wrong_names_and_values_are_refused_before_anything_is_made(tmp_path, wrong, message):
    sections = {name: {**SECTIONS.get(name, {}), **fields} for name, fields in wrong.items() if type(fields) is dict}
    with pytest.raises(ConfigError) as refused:
        pretrained(tmp_path, **wrong | sections)
    assert str(refused.value).startswith(message)
    assert not (tmp_path / "run").exists()


def test_a_later_stage_starts_from_a_run_object(tmp_path):
    base = pretrained(tmp_path, model=SECTIONS["model"] | {"block_size": 32})
    data = write_jsonl(tmp_path / "demonstrations.jsonl", DEMONSTRATIONS)
    sections = {"train": {"steps": 2}, "batch": {"size": 4, "micro_size": 2}, "sft": {"val_fraction": 0.2}}
    made = npllm.sft(base, data=data, out=tmp_path / "sft", quiet=True, **sections)
    assert made.config.sft.val_fraction == 0.2
    assert repr(made).startswith(f"Run('{tmp_path / 'sft'}': sft, 1.")
    assert isinstance(made.sample("the cat", max_tokens=3), str)
    with pytest.raises(ConfigError, match="npllm sft needs run"):
        npllm.sft(data=data)


@pytest.mark.parametrize("name", [name for name in STAGES if name != "pretrain"])
def test_a_function_has_the_parameters_and_the_help_of_its_verb(name):
    kind = load_stage(name)
    options = options_of(verb_of(kind, "", kind.config_type()))
    function = getattr(npllm, name)
    parameters = inspect.signature(function).parameters
    assert {option.name.split(".")[0] for option in options} <= set(parameters)
    assert all(f"    {option.name}: " in function.__doc__ for option in options if "." not in option.name)


def test_quiet_prints_nothing(tmp_path, capsys):
    pretrained(tmp_path)
    assert capsys.readouterr() == ("", "")
