"""The page of the microscope: what stands on it, from a run, a recipe and a text."""

import functools
import html
import re

import numpy as np
import pytest
from microscope_cases import EVERY, LINE, small_subject
from small_runs import pretrain_arguments, refused, run, write_text
from stage_runs import DEMONSTRATIONS, pretrained, stage_arguments, write_jsonl

import npllm
from npllm.interop import huggingface
from npllm.model import GPT, ModelConfig
from npllm.pages import differences
from npllm.pages.microscope import microscope_page, shown
from npllm.pages.operation_views import paragraphs
from npllm.pages.training_step import Microscope, look_at

SMALL = {"n_layer": 1, "n_head": 2, "n_embd": 8, "block_size": 16, "vocab_size": 257}
LARGEST_PAGE = 5_000_000  # bytes
HOSTILE = "<script>alert(1)</script>\"'&\x00\x1b$$ $x$"


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    """A finished run of six updates; its block has 8 tokens, which are characters."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("npllm.training.results.SAMPLE_TOKENS", 2)
        patch.setattr("npllm.training.results.plot_loss", lambda metrics, path: None)
        assert run(*pretrain_arguments(write_text(folder), folder / "run")) == 0
    return folder / "run"


@functools.cache
def page_of(kind: str) -> tuple[Microscope, str]:
    """The numbers and the page of an architecture; its model has made a step."""
    seen = look_at(small_subject(**EVERY[kind]))
    return seen, microscope_page(seen)


def text_of(page: str, anchor: str) -> str:
    """The words of a section, without pictures and code."""
    section = page[page.index(f'id="{anchor}"') :].partition("</section>")[0]
    section = re.sub(r"<(svg|pre)\b.*?</\1>", " ", section, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", section)).split())


def table_of(page: str, label: str) -> list[list[str]]:
    """The cells of the table with this label, row by row."""
    table = page[page.index(f'aria-label="{label}"') :].partition("</table>")[0]
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in table.split("<tr>")[1:]]
    return [[" ".join(html.unescape(re.sub(r"<[^>]*>", "", cell)).split()) for cell in row] for row in rows]


@pytest.mark.parametrize("kind", EVERY)
def test_every_operation_stands_there_once_with_its_numbers(kind):
    """Fails if an operation is missing or twice, or a number is not that of the API."""
    fresh = small_subject(**EVERY[kind])
    inside = npllm.inspect(fresh.model, fresh.tokens)
    seen, page = page_of(kind)
    sections = re.findall(r'<section id="op-[^"]*" .*?<h2[^>]*>(.*?)</h2>', page, re.DOTALL)
    assert sections == list(inside.operations)
    weights = fresh.model.weights
    for name, gradient in inside.gradients.items():
        array = inside.outputs.get(name, weights.get(name))
        assert page.count(f'id="tensor-{name.replace(".", "-")}"') == 1, name
        shape = " × ".join(map(str, array.shape))
        norms = f"{shape}, .*, norm {np.linalg.norm(array.astype(float)):.4g}"
        assert re.search(f">{re.escape(name)}</a><br><span[^>]*>{norms}<", page), name
        error = "" if name == "loss" else f"; largest error against differences {seen.errors[name]:.1e}"
        found = f">{re.escape(name)}</a><br><span[^>]*>norm {np.linalg.norm(gradient):.4g}{re.escape(error)}<"
        assert re.search(found, page), name


def test_losses_attention_and_update_are_those_of_the_api():
    fresh = small_subject(**EVERY["llama"])
    inside = npllm.inspect(fresh.model, fresh.tokens)
    seen, page = page_of("llama")
    subject = seen.subject
    after = npllm.inspect(subject.model, subject.tokens).losses[0]  # the model has made its step
    words = [shown(subject.tokenizer, i) for i in subject.ids]
    rows = table_of(page, "Losses before and after the update")[1:]
    for i, row in enumerate(rows[:-1]):
        assert row[:3] == [words[i + 1], f"{inside.losses[0, i]:.4f}", f"{after[i]:.4f}"]
    assert rows[-1][1] == f"{inside.loss:.4f}"
    cells = re.findall(r"<title>(\S+) → (\S+): ([\d.]+)</title>", page)
    T = len(words)
    weights = inside.attention[:, 0]
    expected = [
        (words[i], words[j], f"{weights[layer, head, i, j]:.3f}")
        for layer in range(2)
        for head in range(2)
        for i in range(T)
        for j in range(i + 1)
    ]
    assert [tuple(map(html.unescape, cell)) for cell in cells] == expected


def test_what_a_loss_sends_back_and_the_lens_are_tables():
    seen, page = page_of("gpt2")
    subject = seen.subject
    rows = table_of(page, "Gradient norms of token 3")[1:]
    assert [row[0] for row in rows] == ["2", "1", "0"]
    for layer, row in zip((2, 1, 0), rows, strict=True):
        assert row[1:] == [f"{norm:.3g}" for norm in seen.sent_back[2, layer, :3]]
    lens = table_of(page, "Backward lens of layer 1")[1:]
    assert len(lens) == len(subject.ids)
    likelier = [f"{shown(subject.tokenizer, i)} {move:+.2f}" for i, move in seen.lens[1].readings[4].up]
    assert lens[4][3] == ", ".join(likelier)


def test_time_work_and_memory_are_those_of_the_profile():
    """Fails if a bar or a number is that of another operation or direction."""
    seen, page = page_of("llama")
    profile = seen.profile
    rows = table_of(page, "Time, FLOPs and memory of each operation")[1:]
    assert [row[0] for row in rows] == list(seen.inside.operations)
    for name, seconds, flops, kept in rows:
        timings = [part[name] for part in (profile.forward, profile.backward, profile.again) if name in part]
        assert seconds == f"{1e3 * sum(each.seconds for each in timings):.3f} ms"
        assert flops == f"{sum(each.flops for each in timings) / 1e6:.1f} M"
        size = sum(each.bytes for each in profile.kept.get(name, []))
        assert kept == (f"{size / 1e3:.1f} kB" if size >= 1000 else f"{size} bytes")
        forward = profile.forward[name]
        assert (
            f"forward {1e3 * forward.seconds:.3f} ms" in text_of(page, f"op-{name.replace('.', '-')}") or name == "loss"
        )
    assert page.count('class="fill"') == 3 * len(rows)


def test_each_kind_of_operation_is_derived_once_with_its_code():
    _, page = page_of("qwen")
    kinds = ["embedding", "rmsnorm", "linear", "qk_norm", "rotary", "attention", "add_norm", "swiglu", "lm_head_loss"]
    assert re.findall(r'id="kind-(\w+)"', page) == kinds
    for kind in kinds:
        assert page.count(f"<figcaption>npllm/reference/{kind}.py, line ") == 2  # forward and backward
        assert page.count(f"<figcaption>npllm/kernels/{kind}.py, line ") == 1
    assert page.count("Why cache P: it is the simplest choice") == 1
    assert "Why cache" in text_of(page, "op-blocks-0-norm_1")


def test_hostile_text_is_only_text():
    """Fails if a token, or the name of the run, gets into the page as HTML."""
    subject = small_subject(text=HOSTILE, **{**EVERY["gpt2"], "block_size": 64})._replace(name="<img src=x>")
    page = microscope_page(look_at(subject))
    assert page.count("<script>") == 1  # the page's own
    assert "<img src=x>" not in page
    assert "\x00" not in page
    assert "\x1b" not in page


def test_the_page_shows_a_run(tmp_path, small_run):
    """Fails if the page has other weights, or the optimiser has not its state."""
    out = tmp_path / "page.html"
    assert run("microscope", small_run, "--text", "the cat", "--out", out) == 0
    page = out.read_text(encoding="utf-8")
    model, tokenizer = npllm.load(small_run)
    inside = npllm.inspect(model, [tokenizer.encode("the cat")])
    assert f"the loss is {inside.loss:.4f} nats" in text_of(page, "text")
    assert "AdamW), in its state after 6 updates" in text_of(page, "update")
    lr = npllm.Run(small_run).config.optim.min_lr
    assert f"learning rate of {lr:.3g} " in text_of(page, "update")


def test_the_page_shows_a_line_of_the_validation_text_with_the_weights_of_a_recipe(tmp_path):
    """A recipe needs no run, and leaves none behind."""
    text = write_text(tmp_path)
    recipe = tmp_path / "small.toml"
    sizes = "n_layer = 1\nn_head = 2\nn_embd = 8\nblock_size = 40"
    recipe.write_text(f'[data]\nsource = ["{text}"]\ntokenizer = "char"\n\n[model]\n{sizes}\n')
    out = tmp_path / "page.html"
    assert run("microscope", recipe, "--out", out) == 0
    page = out.read_text(encoding="utf-8")
    assert "with its initial weights, on one line of text" in page
    rows = table_of(page, "Losses before and after the update")[1:-1]
    line = "".join(row[0] for row in rows).replace("␣", " ")
    assert line in text.read_text()
    assert len(line) >= 7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html", "small.toml", "text.txt"]


def test_a_later_stage_is_shown_with_a_text_of_the_user(tmp_path, capsys, quick):
    """With LoRA the parameters of the update are the factors; the rest is merged."""
    data = write_jsonl(tmp_path / "data.jsonl", DEMONSTRATIONS)
    assert run(*stage_arguments("sft", pretrained(tmp_path), tmp_path / "sft", data=data, adapt__lora_rank=2)) == 0
    message = refused(capsys, "microscope", tmp_path / "sft", exit_code=3)
    assert "no validation text; give a line with --text" in message
    out = tmp_path / "page.html"
    assert run("microscope", tmp_path / "sft", "--text", "a dog ran", "--out", out) == 0
    page = out.read_text(encoding="utf-8")
    assert "tensor-blocks-0-mlp-up-weight" in page
    assert not any(row[1] == "0 %" for row in table_of(page, "Size of each update"))  # this schedule ends at 0
    names = [row[0] for row in table_of(page, "Size of each update")]
    assert "blocks.0.mlp.up.weight.lora_a" in names
    assert "blocks.0.mlp.up.weight" not in names


@pytest.mark.parametrize("save", [npllm.save, huggingface.save], ids=["npllm", "hugging face"])
def test_a_folder_with_a_model_is_shown_with_a_new_optimiser(tmp_path, capsys, save):
    """Fails if the folder is refused, or its weights are not those of the page."""
    model, tokenizer, folder = GPT(ModelConfig(**SMALL), seed=3), npllm.byte_tokenizer(), tmp_path / "model"
    save(model, tokenizer, folder)
    assert "no validation text; give a line with --text" in refused(capsys, "microscope", folder, exit_code=3)
    out = tmp_path / "page.html"
    assert run("microscope", folder, "--text", "a cat", "--out", out) == 0
    page = out.read_text(encoding="utf-8")
    assert f"the loss is {npllm.inspect(model, [tokenizer.encode('a cat')]).loss:.4f} nats" in text_of(page, "text")
    assert "as its files describe it, on one line of text" in page
    assert "One update by AdamW, which has made no update yet, with a learning rate of 0.001 and" in " ".join(
        page.split()
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("the cat sat", "has 11 tokens, but the model reads 8"), ("a", "fewer than two tokens"), ("€ and", "'€'")],
)
def test_a_text_that_cannot_be_shown_ends_in_a_sentence(small_run, capsys, text, complaint):
    message = refused(capsys, "microscope", small_run, "--text", text, exit_code=3)
    assert complaint in message


def test_a_run_that_is_none_ends_in_a_sentence(tmp_path, capsys):
    assert "is not a run" in refused(capsys, "microscope", tmp_path, exit_code=3)
    assert "the recipes are" in refused(capsys, "microscope", "classik", exit_code=2)


@pytest.mark.long
def test_the_default_model_fits_into_five_megabytes(monkeypatch):
    """The architecture of the default recipe, with as many tokens as a line has."""
    monkeypatch.setattr(differences, "ENTRIES", 1)
    text = (LINE + " and a longer line")[:24]
    fields = EVERY["qwen"] | {"tie_embeddings": True, "n_kv_head": None}
    subject = small_subject(text=text, **fields, n_layer=3, n_head=4, n_embd=128, block_size=128)
    page = microscope_page(look_at(subject))
    assert len(page.encode()) < LARGEST_PAGE


def test_every_token_can_be_seen():
    tokenizer = npllm.byte_tokenizer()
    words = [shown(tokenizer, i) for i in tokenizer.encode(" \n\ta<é")]
    assert words == ["␣", "⏎", "⇥", "a", "<", "\\xc3", "\\xa9"]


def test_a_block_of_formulas_is_one_paragraph():
    assert paragraphs("a\n\n$$\nx\n\ny\n$$\n\nb") == ["a", "$$\nx\n\ny\n$$", "b"]
