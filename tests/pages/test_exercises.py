"""The answers of the exercises are true: the named test fails after the change."""

import inspect
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace

import proofs
import pytest
from hypothesis import Phase, settings

import npllm
from npllm import reference
from npllm.pages.exercises import EXERCISES

ROOT = Path(npllm.__file__).parents[1]
# What pytest would give to the tests that have parameters.
PARAMETERS = {
    "test_linear": [{"epilogue": epilogue, "bias": True} for epilogue in ("none", "gelu")],
    "test_layernorm": [{"bias": True}],
    "test_add_norm": [{"norm": "layernorm", "bias": True}],
    "test_attention": [{"packed": False}],
    "test_lm_head_policy": [{"with_entropy": True}],
    "test_muon_makes_singular_values_nearly_equal_and_keeps_their_vectors": [{"shape": (4, 9)}],
    "test_gradient_of_every_parameter": [{"variant": {}}],
}
ALL = [(file, exercise) for file, exercises in EXERCISES.items() for exercise in exercises]


def changed(file: str, exercise) -> ModuleType:
    """The module of a chapter, with the change of the exercise."""
    right = import_module("npllm." + file.removesuffix(".py").replace("/", "."))
    source = inspect.getsource(right)
    assert source.count(exercise.before) == 1
    module = ModuleType(right.__name__)
    exec(compile(source.replace(exercise.before, exercise.after), file, "exec"), vars(module))
    return module


def outcomes(test: str, module: ModuleType, monkeypatch) -> None:
    """Run a test with the functions of `module` in place of the right ones."""
    monkeypatch.setattr(proofs, "count", lambda *_: None)  # these checks were counted elsewhere
    path, name = test.split("::")
    monkeypatch.syspath_prepend(ROOT / Path(path).parent)
    function = getattr(import_module(Path(path).stem), name)
    own = {
        key: value
        for key, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__
    }
    for user in [each for key, each in sys.modules.items() if key.startswith("npllm.") or key == Path(path).stem]:
        for key in own.keys() & vars(user).keys():
            if getattr(vars(user)[key], "__module__", None) == module.__name__:
                monkeypatch.setattr(user, key, own[key])
    if hasattr(function, "hypothesis"):  # fewer examples, and no search for the smallest one
        few = settings(max_examples=6, phases=[Phase.generate], deadline=None, derandomize=True, database=None)
        monkeypatch.setattr(function, "_hypothesis_internal_use_settings", few)
    arguments = (
        {"ops": SimpleNamespace(**vars(reference) | own)} if "ops" in inspect.signature(function).parameters else {}
    )
    for parameters in PARAMETERS.get(name, [{}]):
        function(**arguments, **parameters)


@pytest.mark.filterwarnings("ignore:overflow")  # one change makes a sum overflow
@pytest.mark.parametrize(("file", "exercise"), ALL, ids=[f"{file}-{exercise.question}" for file, exercise in ALL])
def test_the_named_test_fails_after_the_change(file, exercise, monkeypatch):
    module = changed(file, exercise)
    with pytest.raises((AssertionError, ValueError, KeyError, ExceptionGroup)):
        outcomes(exercise.test, module, monkeypatch)


@pytest.mark.parametrize("test", sorted({exercise.test for _, exercise in ALL}))
def test_the_named_test_passes_without_a_change(test, monkeypatch):
    outcomes(test, ModuleType("nothing"), monkeypatch)
