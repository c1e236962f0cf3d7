"""Supervised fine-tuning: its targets, run folder and errors, and what it learns."""

from dataclasses import astuple

import numpy as np
import pytest
from small_runs import checkpoints, content, refused, run, summary, untimed_metrics
from stage_runs import DEMONSTRATIONS, conversations, pretrained, stage_arguments, write_jsonl

from npllm.data.chat import Example
from npllm.data.packing import pack
from npllm.data.prompt_format import CHAT_TOKENS, END
from npllm.data.records import read_demonstrations
from npllm.data.sampler import RowSampler
from npllm.finetuning.sft import PackedGradients, SFTConfig, encode, packed_loss
from npllm.model import GPT, ModelConfig
from npllm.optim import AdamW, BatchConfig
from npllm.runs.checkpoint import load_checkpoint, model_from_checkpoint
from npllm.tokenizer import Tokenizer
from npllm.tokenizer.tokenizer import END_OF_TEXT
from npllm.training.config import TrainConfig

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return pretrained(tmp_path_factory.mktemp("base"))


@pytest.fixture
def data(tmp_path):
    return write_jsonl(tmp_path / "data.jsonl", DEMONSTRATIONS)


def documents(tokens, targets, starts) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The tokens and the targets of each document in the rows; -1 is no target."""
    found = []
    for start in np.unique(starts):
        here = starts == start
        if (targets[here] >= 0).any():
            found.append((tuple(tokens[here].tolist()), tuple(targets[here & (targets >= 0)].tolist())))
    return found


@pytest.mark.parametrize("chat", [False, True], ids=["responses", "messages"])
def test_the_loss_is_on_responses_and_their_end_only(base, tmp_path, monkeypatch, chat):
    """The model reads every training demonstration, and no other token."""
    seen, real = set(), GPT.loss_and_grad

    def spy(model, tokens, targets, *, starts, **how):
        for row in zip(tokens, targets, starts, strict=True):
            seen.update(documents(*row))
        return real(model, tokens, targets, starts=starts, **how)

    monkeypatch.setattr(GPT, "loss_and_grad", spy)
    records = conversations(DEMONSTRATIONS) if chat else DEMONSTRATIONS
    out = tmp_path / "run"
    assert run(*stage_arguments("sft", base, out, data=write_jsonl(tmp_path / "data.jsonl", records))) == 0
    tokenizer = Tokenizer.load(out)
    special, expected = tokenizer.special_tokens, set()
    for demonstration in DEMONSTRATIONS:
        prompt, response = (tokenizer.encode(demonstration[name]) for name in ("prompt", "response"))
        if chat:
            shown = [special["<|user|>"], *prompt, special[END], special["<|assistant|>"], *response]
            expected.add((tuple(shown), (*response, special[END])))
        else:
            expected.add(((*prompt, *response), (*response, special[END_OF_TEXT])))
    held_out = (out / "data" / "val.jsonl").read_text().count("\n")
    assert seen < expected
    assert len(seen) == len(expected) - held_out == 5


def test_the_run_holds_all_that_it_needs(base, data, tmp_path):
    out = tmp_path / "run"
    assert run(*stage_arguments("sft", base, out, data=data)) == 0
    records = {name: (out / "data" / f"{name}.jsonl").read_text().splitlines() for name in ("train", "val")}
    assert sorted(records["train"] + records["val"]) == sorted(data.read_text().splitlines())
    assert len(records["val"]) == 1
    assert (out / "models" / "policy.h5").read_bytes() == checkpoints(base)[-1].read_bytes()
    figures = summary(out)
    assert figures["steps"] == len(untimed_metrics(out)) == 6
    assert figures["tokens"] == untimed_metrics(out)[-1]["tokens"] == 6 * 4 * 32
    model = model_from_checkpoint(checkpoints(out)[-1])
    tokenizer = Tokenizer.load(out)
    val_text = Tokenizer.load(out).encode(DEMONSTRATIONS[0]["prompt"])
    assert figures["val_loss"] == untimed_metrics(out)[-1]["val_loss"]
    assert model.config.vocab_size == tokenizer.vocab_size
    assert val_text == Tokenizer.load(base).encode(DEMONSTRATIONS[0]["prompt"])
    before = content(out)
    data.unlink()
    assert run("resume", out) == 0  # a finished run stays as it is, and needs nothing but its folder
    assert content(out) == before


@pytest.mark.parametrize("chat", [False, True], ids=["responses", "messages"])
def test_the_tokenizer_gains_what_is_missing(base, tmp_path, chat):
    out = tmp_path / "run"
    records = conversations(DEMONSTRATIONS) if chat else DEMONSTRATIONS
    assert run(*stage_arguments("sft", base, out, data=write_jsonl(tmp_path / "data.jsonl", records))) == 0
    old, new = Tokenizer.load(base), Tokenizer.load(out)
    added = [END_OF_TEXT, *(CHAT_TOKENS if chat else ())]
    assert new.special_tokens == {text: old.vocab_size + place for place, text in enumerate(added)}
    again = tmp_path / "again"  # from a run that has them already
    assert run(*stage_arguments("sft", out, again, data=tmp_path / "data.jsonl")) == 0
    assert (again / "tokenizer.json").read_bytes() == (out / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(("steps", "expected"), [(None, 4), (7, 7)])
def test_epochs_are_counted_in_rows(base, data, tmp_path, steps, expected):
    """Without train.steps, 5 epochs of 3 packed rows are made, in batches of 4."""
    out = tmp_path / "run"
    settings = {"train__steps": steps, "sft__epochs": 5, "sft__val_fraction": 0.01}
    assert run(*stage_arguments("sft", base, out, data=data, **settings)) == 0
    examples = encode(read_demonstrations(out / "data" / "train.jsonl"), Tokenizer.load(out))
    assert len(pack(examples, 32).tokens) == 3
    assert summary(out)["steps"] == expected


@pytest.mark.parametrize("lora_rank", [0, 2])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_any_dtype_goes_on_from_a_base_in_float32(base, data, tmp_path, dtype, lora_rank):
    out = tmp_path / "run"
    changes = {"train__dtype": dtype, "adapt__lora_rank": lora_rank}
    assert run(*stage_arguments("sft", base, out, data=data, **changes)) == 0
    arrays = load_checkpoint(checkpoints(out)[-1]).arrays
    assert arrays.keys() == {"params", "adam_m", "adam_v"} | ({"frozen"} if lora_rank else set())
    assert {array.dtype for array in arrays.values()} == {np.dtype(dtype)}


def uneven_rows():
    """Rows with few targets and with many, so that the mean of the micro-batches' means
    is not the mean of the batch."""
    rng = np.random.default_rng(0)
    examples = []
    for n, n_targets in [(9, 1), (9, 8), (5, 4), (4, 1), (9, 2), (8, 7), (9, 4), (3, 1), (6, 5), (9, 8), (7, 3)]:
        examples.append(Example(rng.integers(0, 11, n).astype(np.int32), np.arange(n) >= n - n_targets))
    return pack(examples, block_size=8)


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_eight_rows_at_once_or_one_after_the_other(lora_rank):
    """The loss is per target of the whole batch, however the micro-batches divide it.

    Dropout is on. The sampler chooses the rows, so a part of an epoch is not the first
    rows of the file.
    """
    rows, ids = uneven_rows(), np.arange(3, 11)
    rows = type(rows)(*(np.concatenate([array, array[::-1]]) for array in rows))  # far more than the batch has
    config = ModelConfig(n_layer=2, n_head=2, n_embd=8, block_size=8, vocab_size=11, dropout=0.2, lora_rank=lora_rank)
    results = []
    for micro_size in (8, 1):
        model = GPT(config, dtype="float64")
        batch, train = BatchConfig(size=8, micro_size=micro_size), TrainConfig(seed=6)
        gradients = PackedGradients(rows, SFTConfig(batch=batch, train=train))
        result = gradients(model, ids, step=3)
        gradient = model.grads.flat.copy()
        AdamW(model, lr=0.1).step(grad_clip=1.0)
        results.append((result, gradient, model.params.flat.copy()))
    (whole, gradient, weights), (parts, sum_of_gradients, same_weights) = results
    tokens, targets, starts = (array[RowSampler(len(rows.tokens), seed=6).rows(ids)] for array in rows)
    model = GPT(config, dtype="float64")
    assert whole.loss == pytest.approx(model.loss_and_grad(tokens, targets, starts=starts, step=3), rel=1e-12)
    np.testing.assert_allclose(gradient, model.grads.flat, rtol=0, atol=1e-14)
    assert whole.figures == {"n_targets": np.count_nonzero(targets >= 0)}
    assert parts.loss == pytest.approx(whole.loss, rel=1e-12)
    assert parts.figures == whole.figures
    assert np.linalg.norm(gradient) > 0
    assert np.linalg.norm(sum_of_gradients - gradient) <= 1e-12 * np.linalg.norm(gradient)
    assert np.linalg.norm(same_weights - weights) <= 1e-6 * np.linalg.norm(weights)


def test_the_held_out_loss_is_per_target_of_all_rows():
    """There are more rows than one pass reads, with few targets and with many."""
    rows = uneven_rows()
    rows = type(rows)(*(np.tile(array, (3, 1)) for array in rows))
    rows.targets[: len(rows.targets) // 2, 1:] = -1
    model = GPT(ModelConfig(n_layer=1, n_head=2, n_embd=8, block_size=8, vocab_size=11), dtype="float64")
    assert len(rows.tokens) > 16
    expected = model.loss(rows.tokens, rows.targets, starts=rows.starts)
    assert packed_loss(model, rows) == pytest.approx(expected, rel=1e-12)


LEARNING = {"optim__lr": 2e-2, "optim__warmup_steps": 10, "train__steps": 150, "train__eval_every": 150}


def test_it_learns_to_answer_and_to_stop(tmp_path, capsys):
    """The model answers the prompts that it was trained on.

    Each demonstration is in the file twice, and both copies are on the same side.
    """
    base = pretrained(tmp_path, model__n_embd=32)
    data = write_jsonl(tmp_path / "data.jsonl", DEMONSTRATIONS * 2)
    out = tmp_path / "run"
    assert run(*stage_arguments("sft", base, out, data=data, **LEARNING)) == 0
    losses = [record["loss"] for record in untimed_metrics(out)]
    assert losses[0] > 2.0
    assert losses[-1] < 0.05
    learnt = set(read_demonstrations(out / "data" / "train.jsonl"))
    assert len(learnt) == len(DEMONSTRATIONS) - 1
    for prompt, response in (astuple(demonstration) for demonstration in learnt):
        capsys.readouterr()
        assert run("generate", out, "--prompt", prompt, "--temperature", 0, "--max-tokens", 40) == 0
        assert capsys.readouterr().out == f"{prompt}{response}\n"


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ([], "holds no records"),
        ([{"prompt": "a", "response": "a"}], "too few to train and validate on"),
        ([*DEMONSTRATIONS, {"prompt": " ", "response": ""}], "line 7: prompt and response is empty"),
        ([*DEMONSTRATIONS, {"prompt": "a"}], "line 7: the field 'response' is missing"),
        ([*DEMONSTRATIONS, {"prompt": "a", "response": "a" * 33}], "line 7: it has 35 tokens, more than"),
        ([{"prompt": "a" * 33, "response": "a"}, *DEMONSTRATIONS], "line 1: it has 35 tokens, more than"),
        ([*DEMONSTRATIONS, {"prompt": "Ω", "response": "a"}], "'Ω'"),
        ([*DEMONSTRATIONS, {"messages": [{"role": "user", "content": "a"}]}], "line 7: the roles are user"),
        ([{"messages": []}], "line 1: the roles are missing"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_bad_demonstrations_are_named_and_leave_nothing(base, tmp_path, capsys, lines, complaint):
    """Bad records are found on both sides of the split."""
    out, data = tmp_path / "run", write_jsonl(tmp_path / "data.jsonl", lines)
    for seed in (0, 1):
        words = stage_arguments("sft", base, out, data=data, train__seed=seed, sft__val_fraction=0.5)
        assert complaint in refused(capsys, *words, exit_code=3)
        assert not out.exists()


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"sft__epochs": 0}, "sft.epochs is 0.0; set it above 0"),
        ({"sft__val_fraction": 1}, "sft.val_fraction is 1.0; set it between 0 and 1"),
        ({"adapt__frozen_blocks": 2}, "adapt.frozen_blocks is 2, but the model has 1 blocks; lower it"),
        ({"adapt__lora_rank": -1}, "adapt.lora_rank is -1; set it to at least 0"),
        ({"optim__lr": "nan"}, "optim.lr is nan"),
    ],
)
def test_bad_settings_are_named_and_leave_nothing(base, data, tmp_path, capsys, settings, complaint):
    words = stage_arguments("sft", base, tmp_path / "run", data=data, **settings)
    assert complaint in refused(capsys, *words, exit_code=2)
    assert not (tmp_path / "run").exists()
