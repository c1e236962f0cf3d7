"""`npllm generate`: prompts from files, several texts, and where they end."""

import io
from importlib import import_module

import numba
import pytest
from small_runs import pretrain_arguments, refused, run, write_text
from stage_runs import write_jsonl

import npllm
from npllm.generation import generate

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run with a byte vocabulary and block_size 16."""
    folder = tmp_path_factory.mktemp("trained")
    changes = {"data__tokenizer": "byte", "train__steps": 2, "model__block_size": 16}
    assert run(*pretrain_arguments(write_text(folder), folder / "run", **changes)) == 0
    return folder / "run"


def shown(capsys, *arguments) -> tuple[str, str]:
    """Standard output and standard error of `npllm generate`."""
    capsys.readouterr()
    assert run("generate", *arguments) == 0
    return capsys.readouterr()


def samples(text: str) -> list[str]:
    """The texts after the headings of several."""
    return [part.partition(" ===\n")[2] for part in text.split("=== ")[1:] if " of " in part]


def test_each_sample_is_another_text_and_the_first_is_that_of_one(trained, capsys):
    """A sample does not depend on how many there are."""
    options = (trained, "--prompt", "the ", "--max_tokens", 9, "--seed", 3)
    alone, _ = shown(capsys, *options)
    four, _ = shown(capsys, *options, "--n", 4)
    two, _ = shown(capsys, *options, "--n", 2)
    assert four.splitlines()[0] == "=== sample 1 of 4 ==="
    assert samples(four)[0] == alone
    assert samples(four)[:2] == samples(two)
    assert len(set(samples(four))) == 4
    assert all(text.startswith("the ") for text in samples(four))


def test_the_number_of_threads_changes_no_text(trained, capsys):
    options = (trained, "--prompt", "the ", "--max_tokens", 30, "--n", 2, "--seed", 4)
    expected, _ = shown(capsys, *options)
    threads = numba.get_num_threads()
    try:
        numba.set_num_threads(1)
        assert shown(capsys, *options)[0] == expected
    finally:
        numba.set_num_threads(threads)


def test_python_gives_the_texts_of_the_verb(trained, capsys):
    model, tokenizer = npllm.load(trained)
    settings = {"max_tokens": 12, "temperature": 1.2, "top_k": 40, "min_p": 0.01, "repetition_penalty": 1.3, "seed": 5}
    options = [word for name, value in settings.items() for word in (f"--{name}", value)]
    out, _ = shown(capsys, trained, "--prompt", "a ", "--n", 3, "--stop", "e", *options)
    expected = ["".join(generate(model, tokenizer, "a ", sample=i, stop=["e"], **settings)) for i in range(3)]
    assert samples(out) == [f"a {text}\n" for text in expected]
    plain = ["".join(generate(model, tokenizer, "a ", sample=i, max_tokens=12, seed=5)) for i in range(3)]
    assert plain != expected


@pytest.fixture
def scripted(monkeypatch):
    """scripted(tokenizer, text) lets every model write this text."""

    def script(run_folder, text):
        ids = npllm.load(run_folder)[1].encode(text)
        module = import_module("npllm.generation.generate")  # the package has a function of this name
        monkeypatch.setattr(module, "generate_tokens", lambda *_, **__: iter(ids))

    return script


def test_it_ends_before_the_first_stop_text(trained, capsys, scripted):
    """The option may be repeated, and a stop text in the prompt ends nothing."""
    scripted(trained, "cat\n\ndog --x end")
    prompt = (trained, "--prompt", "on\n\n")
    assert shown(capsys, *prompt, "--stop", "\n\n")[0] == "on\n\ncat\n"
    assert shown(capsys, *prompt, "--stop", "zebra", "--stop=--x")[0] == "on\n\ncat\n\ndog \n"
    assert shown(capsys, *prompt, "--stop=--x", "--stop", "at")[0] == "on\n\nc\n"
    assert shown(capsys, *prompt)[0] == "on\n\ncat\n\ndog --x end\n"


def test_a_repetition_penalty_ends_repetition(trained, capsys):
    """At temperature 0 this model repeats itself; with a penalty no token of what it
    sees comes again."""
    options = (trained, "--prompt", "a", "--max_tokens", 12, "--temperature", 0)
    plain, _ = shown(capsys, *options)
    text, _ = shown(capsys, *options, "--repetition_penalty", 1e9)
    assert len(set(plain[:-1])) < len(plain[:-1])
    model, tokenizer = npllm.load(trained)
    ids = list(npllm.generation.generate_tokens(model, tokenizer.encode("a"), max_tokens=12, repetition_penalty=1e9))
    assert len(set(ids)) == 12
    assert text != plain


def test_prompts_from_files_and_standard_input(trained, tmp_path, capsys, monkeypatch):
    options = (trained, "--max_tokens", 6, "--seed", 1)
    expected, _ = shown(capsys, *options, "--prompt", "the\ncat")
    for end in ("", "\n", "\r\n"):
        (tmp_path / "prompt.txt").write_text(f"the\ncat{end}", newline="")
        assert shown(capsys, *options, "--prompt_file", tmp_path / "prompt.txt")[0] == expected
        monkeypatch.setattr("sys.stdin", io.StringIO(f"the\ncat{end}"))
        assert shown(capsys, *options, "--prompt_file", "-")[0] == expected
    prompts = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "the\ncat"}, {"prompt": "on "}])
    both, _ = shown(capsys, *options, "--prompt_file", prompts)
    other, _ = shown(capsys, *options, "--prompt", "on ")
    assert both == f"=== prompt 1 of 2 ===\n{expected}=== prompt 2 of 2 ===\n{other}"
    each_twice, _ = shown(capsys, *options, "--prompt_file", prompts, "--n", 2)
    assert each_twice.count("=== prompt 2 of 2, sample 1 of 2 ===\n" + other) == 1


def test_a_text_beyond_the_window_is_said_once(trained, capsys):
    said = (
        "npllm: The model sees 16 tokens at once; past them it forgot the older half of the text, read the newer half "
        "again, and went on."
    )
    assert shown(capsys, trained, "--prompt", "the ", "--max_tokens", 40, "--n", 3)[1].splitlines() == [said]
    assert shown(capsys, trained, "--prompt", "the ", "--max_tokens", 12)[1] == ""


def test_a_prompt_beyond_the_window_is_said_once(trained, capsys):
    said = "npllm: The prompt has 17 tokens, but the model sees 16 at once; its beginning is left out."
    assert shown(capsys, trained, "--prompt", "x" * 17, "--max_tokens", 1, "--n", 3)[1].splitlines() == [said]


BAD = {
    "no samples": (["--n", "0"], 2, "n is 0"),
    "an empty stop text": (["--stop="], 2, "A stop text is empty"),
    "min_p": (["--min_p", "2"], 2, "min_p is 2.0"),
    "penalty": (["--repetition_penalty", "0"], 2, "repetition_penalty is 0.0"),
    "two prompts": (["--prompt", "a", "--prompt_file", "a.txt"], 2, "are both given; leave out one of them."),
    "no such file": (["--prompt_file", "absent.txt"], 3, "absent.txt"),
    "no prompts": (["--prompt_file", "labels.jsonl"], 3, "line 1: the field 'prompt' is missing"),
    "an empty file": (["--prompt_file", "empty.txt"], 3, "empty.txt is empty"),
    "a binary file": (["--prompt_file", "binary.txt"], 3, "binary.txt is binary"),
    "messages": (["--prompt_file", "chat.jsonl"], 2, "no special token <|end|>"),
}


@pytest.mark.parametrize(("options", "exit_code", "complaint"), BAD.values(), ids=BAD)
def test_what_cannot_be_is_refused_before_anything_is_printed(
    trained, tmp_path, monkeypatch, capsys, options, exit_code, complaint
):
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "labels.jsonl", [{"text": "a"}])
    messages = [{"role": "user", "content": "hi"}]
    write_jsonl(tmp_path / "chat.jsonl", [{"prompt": "fine"}, {"prompt": messages}])
    (tmp_path / "empty.txt").touch()
    (tmp_path / "binary.txt").write_bytes(b"a\0b")
    capsys.readouterr()
    assert run("generate", trained, *options) == exit_code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert complaint in captured.err
    assert len(captured.err.splitlines()) == 1


def test_standard_input_that_is_not_utf_8(trained, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe"), encoding="utf-8"))
    assert "Standard input is not UTF-8" in refused(capsys, "generate", trained, "--prompt_file", "-", exit_code=3)
