"""`npllm chat`: what the model reads, when an answer ends, and which models chat."""

import io
from importlib import import_module

import pytest
from small_runs import refused, run
from stage_runs import DEMONSTRATIONS, conversations, pretrained, stage_arguments, write_jsonl

from npllm.data.records import read_demonstrations
from npllm.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return pretrained(tmp_path_factory.mktemp("base"), model__n_embd=32, train__steps=120, optim__lr=1e-2)


def tuned(base, out, records, **changes):
    """A run of npllm sft."""
    words = stage_arguments("sft", base, out, data=write_jsonl(out.parent / f"{out.name}.jsonl", records), **changes)
    assert run(*words) == 0
    return out


@pytest.fixture(scope="module")
def talker(base, tmp_path_factory):
    """A run of npllm sft on conversations, with LoRA."""
    learning = {"optim__lr": 2e-2, "optim__warmup_steps": 10, "train__steps": 250, "train__eval_every": 250}
    lora = {"adapt__lora_rank": 16, "adapt__lora_alpha": 32}
    records = conversations(DEMONSTRATIONS * 2)
    return tuned(base, tmp_path_factory.mktemp("talker") / "run", records, **learning, **lora)


def turns_learnt(talker) -> list[tuple[str, str]]:
    """The question and the answer of each training conversation."""
    records = read_demonstrations(talker / "data" / "train.jsonl")
    turns = {tuple(message.content for message in record.messages) for record in records}
    assert len(turns) == len(DEMONSTRATIONS) - 1
    return sorted(turns)


def talk(monkeypatch, capsys, path, *lines, options=()) -> list[str]:
    """The answers of `npllm chat` to these lines of standard input."""
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    capsys.readouterr()
    assert run("chat", path, "--temperature", 0, *options) == 0
    return [line.removeprefix("> ") for line in capsys.readouterr().out.splitlines()]


def shown_to_the_model(monkeypatch) -> list[list[int]]:
    """The prompts that the model reads from now on. Each answer is one token long."""
    prompts = []

    def one_token(model, prompt, **how):
        prompts.append(how["last"](prompt, model.config.block_size))
        return iter([0])

    module = import_module("npllm.generation.generate")  # the package has a function of this name
    monkeypatch.setattr(module, "generate_tokens", one_token)
    return prompts


def test_it_answers_as_it_learnt_to_and_stops(talker, monkeypatch, capsys):
    for question, answer in turns_learnt(talker):
        assert talk(monkeypatch, capsys, talker, question) == [answer, ""]


def test_a_chosen_checkpoint_answers(talker, monkeypatch, capsys):
    (question, answer), *_ = turns_learnt(talker)
    for choice in ("best", "last"):
        assert talk(monkeypatch, capsys, talker, question, options=("--checkpoint", choice)) == [answer, ""]
    assert "has no checkpoint of step 7;" in refused(capsys, "chat", talker, "--checkpoint", 7, exit_code=2)


def test_generate_asks_and_stops_as_chat_does(talker, capsys):
    """It also prints the answer alone, without the question before it."""
    for question, answer in turns_learnt(talker):
        capsys.readouterr()
        assert run("generate", talker, "--prompt", question, "--temperature", 0) == 0
        shown = capsys.readouterr()
        assert (shown.out, shown.err) == (answer + "\n", "")


def test_an_empty_line_ends_it(talker, monkeypatch, capsys):
    assert talk(monkeypatch, capsys, talker, "on", "", "on") == ["under", ""]


def test_the_whole_conversation_is_seen(talker, monkeypatch, capsys):
    prompts = shown_to_the_model(monkeypatch)
    talk(monkeypatch, capsys, talker, "on ", "a mat")
    tokenizer = Tokenizer.load(talker)
    answer = tokenizer.decode([0])
    text = f"<|user|>on<|end|><|assistant|>{answer}<|end|><|user|>a mat<|end|><|assistant|>"
    assert prompts[1] == tokenizer.encode(text, allowed_special=True)
    assert prompts[1][: len(prompts[0])] == prompts[0]


def test_a_user_cannot_write_special_tokens(talker, monkeypatch, capsys):
    """A special token that is typed is text. This vocabulary lacks its letters, so it
    is refused."""
    monkeypatch.setattr("sys.stdin", io.StringIO("on<|end|>\n"))
    assert "'<'" in refused(capsys, "chat", talker, exit_code=3)


def test_a_long_answer_takes_no_room_from_the_question(talker, monkeypatch, capsys):
    prompts = shown_to_the_model(monkeypatch)
    talk(monkeypatch, capsys, talker, "under the roof", options=("--max-tokens", 1000))
    assert len(prompts[0]) == len("under the roof") + 3


def test_what_the_window_has_no_room_for_is_left_out_with_a_word(talker, monkeypatch, capsys):
    """The oldest turns go first, then the beginning of the question. A line says so."""
    prompts = shown_to_the_model(monkeypatch)
    lines = "under the roof", "on a mat and a roof", "the cat and the dog and the roof"
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    assert run("chat", talker) == 0
    said = "npllm: The prompt has {} tokens, but the model sees 32 at once; its beginning is left out."
    assert capsys.readouterr().err.splitlines() == [said.format(41), said.format(78)]
    decode = Tokenizer.load(talker).decode
    assert decode(prompts[1]) == "<|user|>on a mat and a roof<|end|><|assistant|>"
    assert decode(prompts[2]) == "<|user|> cat and the dog and the roof<|end|><|assistant|>"


@pytest.mark.parametrize("end", ["", "\n"], ids=["as it is", "with a line feed"])
def test_a_line_is_a_prompt_of_the_form_that_was_learnt(base, tmp_path, monkeypatch, capsys, end):
    """Earlier questions are not in the prompt, as in the demonstrations."""
    records = [{"prompt": d["prompt"] + end, "response": d["response"]} for d in DEMONSTRATIONS]
    out = tuned(base, tmp_path / "run", records)
    prompts = shown_to_the_model(monkeypatch)
    talk(monkeypatch, capsys, out, "on", "a mat")
    tokenizer = Tokenizer.load(out)
    assert prompts == [tokenizer.encode(f"on{end}"), tokenizer.encode(f"a mat{end}")]


def test_who_cannot_stop_cannot_talk(base, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("on\n"))
    complaint = "no special token <|endoftext|>; start from a run of npllm sft."
    assert complaint in refused(capsys, "chat", base, exit_code=2)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--temperature", -1), "temperature is -1"),
        (("--top-p", 0), "top_p is 0"),
        (("--max-tokens", -1), "max_tokens"),
    ],
)
def test_settings_out_of_range_are_refused_before_the_first_question(talker, capsys, monkeypatch, options, complaint):
    monkeypatch.setattr("sys.stdin", None)
    assert complaint in refused(capsys, "chat", talker, *options, exit_code=2)


def test_input_that_is_not_utf_8(talker, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe\n"), encoding="utf-8"))
    assert "Standard input is not UTF-8" in refused(capsys, "chat", talker, exit_code=3)
