"""Text token by token: the KV cache, the seed, whole characters, and where it ends."""

from importlib import import_module
from itertools import product

import numpy as np
import pytest
from model.model_cases import set_weights_of_order_one

from npllm.data.prompt_format import CHAT_TOKENS
from npllm.data.records import Message
from npllm.errors import ConfigError, DataError, NpllmWarning
from npllm.generation import KVCache, generate, generate_tokens
from npllm.generation.kv_cache import JoinedCaches
from npllm.model import GPT, ModelConfig
from npllm.tokenizer import byte_tokenizer, train_bpe, train_char
from npllm.tokenizer.special_tokens import with_special_tokens

T, V = 8, 13
SIZES = {"n_layer": 2, "n_head": 4, "n_embd": 16, "block_size": T, "vocab_size": V, "tie_embeddings": False}
NEXT = [[9, 2, 6], [5, 3, 5], [8, 9, 7], [9, 3, 2]]  # tokens that follow four texts
ARCHITECTURES = [
    {"norm": norm, "position": position, "mlp": mlp, "n_kv_head": n_kv_head}
    for norm, position, mlp, n_kv_head in product(
        ("layernorm", "rmsnorm"), ("learned", "rotary"), ("gelu", "swiglu", "relu2"), (1, 2, 4)
    )
]
ARCHITECTURES += [
    {"norm": "rmsnorm", "position": position, "mlp": "swiglu", "n_kv_head": n_kv_head, "qk_norm": True}
    for position, n_kv_head in product(("learned", "rotary"), (1, 2, 4))
]


def lively_model(backend, seed=0, **changes) -> GPT:
    """A model with weights of order one and an untied head. Its greedy text varies: it
    does not repeat one token."""
    model = GPT(ModelConfig(**(SIZES | {"dropout": 0.5} | changes)), dtype="float64", backend=backend)
    rng = np.random.default_rng(seed)
    for name, array in model.params.items():
        is_norm_weight = array.ndim == 1 and name.endswith("weight")
        array[:] = rng.standard_normal(array.shape) * (0.2 if array.ndim == 1 else 0.7) + is_norm_weight
    return model


def plain_greedy(model, prompt, n):
    """The likeliest token of a full forward pass over the window of generate_tokens, n
    times."""
    window, text = list(prompt)[-model.config.block_size :], []
    for _ in range(n):
        text.append(int(np.argmax(model.logits(np.array([window]))[0, -1])))
        window.append(text[-1])
        if len(window) > model.config.block_size:
            window = window[-max(1, model.config.block_size // 2) :]
    return text


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: "-".join(map(str, a.values())))
def test_greedy_text_is_the_argmax_of_the_full_forward(backend, architecture):
    """This holds within block_size and far beyond it."""
    model = lively_model(backend, **architecture)
    written = set()
    for prompt in ([3, 1, 4], [11, 5, 9], [2, 6, 5]):
        text = list(generate_tokens(model, prompt, max_tokens=20, temperature=0.0))
        assert text == plain_greedy(model, prompt, 20)
        written.update(text)
    assert len(written) > 3


@pytest.mark.parametrize("block_size", [1, 2, 3, 7])
@pytest.mark.parametrize("n_prompt", [1, 2, 3, 7, 8, 20])
def test_any_prompt_in_any_window(block_size, n_prompt):
    model = lively_model("kernels", block_size=block_size)
    prompt = np.random.default_rng(1).integers(0, V, n_prompt).tolist()
    text = list(generate_tokens(model, prompt, max_tokens=12, temperature=0.0))
    assert text == plain_greedy(model, prompt, 12)


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("pieces", [[6], [1] * 6, [2, 3, 1]])
def test_extend_gives_the_logits_of_the_full_forward(backend, pieces, qk_norm):
    """This holds however the tokens are divided into calls, and for a batch.

    A cache of keys before their norm or their rotation would give other logits.
    """
    model = lively_model(backend, n_kv_head=2, position="rotary", tie_embeddings=True, qk_norm=qk_norm)
    tokens = np.random.default_rng(2).integers(0, V, (3, 6))
    cache = KVCache(model, batch=3)
    for end, length in zip(np.cumsum(pieces), pieces, strict=True):
        logits = model.extend(tokens[:, end - length : end], cache)
        np.testing.assert_allclose(logits, model.logits(tokens[:, :end])[:, -1], rtol=1e-11, atol=1e-11)
        assert cache.length == end


def test_a_batch_is_its_rows(backend):
    model = lively_model(backend)
    tokens = np.random.default_rng(3).integers(0, V, (4, 5))
    together = KVCache(model, batch=4)
    first, second = model.extend(tokens[:, :3], together), model.extend(tokens[:, 3:], together)
    for row in range(4):
        alone = KVCache(model, batch=1)
        np.testing.assert_allclose(model.extend(tokens[row : row + 1, :3], alone)[0], first[row], rtol=1e-12)
        np.testing.assert_allclose(model.extend(tokens[row : row + 1, 3:], alone)[0], second[row], rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "bf16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: "-".join(map(str, a.values())))
def test_sequences_of_any_lengths_advance_together_with_the_bits_of_each_alone(architecture, dtype):
    """The sequences that share a pass have no influence, nor has their number.

    Positions that were shared, or products that were summed in another order, would
    change the last bits at least.
    """
    model = GPT(ModelConfig(**(SIZES | architecture | {"n_embd": 24})), dtype=dtype)
    set_weights_of_order_one(model, seed=5)
    rng = np.random.default_rng(6)
    texts = [rng.integers(0, V, length) for length in (1, 5, 2, 4)]
    alone = [extended(model, text, rng_tokens) for text, rng_tokens in zip(texts, NEXT, strict=True)]
    for company in ([0, 1, 2, 3], [3, 1], [2, 0, 1]):
        caches = [KVCache(model, batch=1, capacity=len(texts[r]) + 3) for r in company]
        for r, cache in zip(company, caches, strict=True):
            model.extend(texts[r][None], cache)
        for n in range(3):
            logits = model.extend_each([[NEXT[r][n]] for r in company], JoinedCaches(caches))
            for r, row in zip(company, logits, strict=True):
                np.testing.assert_array_equal(row, alone[r][n])


def extended(model, text, tokens) -> list[np.ndarray]:
    """The logits after each of `tokens`, which follow a text one by one."""
    cache = KVCache(model, batch=1)
    model.extend(text[None], cache)
    return [model.extend(np.array([[token]]), cache)[0] for token in tokens]


def test_joined_sequences_equal_the_full_forward(backend):
    model = lively_model(backend, n_kv_head=2, position="rotary", qk_norm=True)
    texts = [[3, 1, 4], [1, 5]]
    caches = [KVCache(model, batch=1) for _ in texts]
    for text, cache in zip(texts, caches, strict=True):
        model.extend(np.array([text]), cache)
    together = model.extend_each([[9], [2]], JoinedCaches(caches))
    for row, text in zip(together, ([3, 1, 4, 9], [1, 5, 2]), strict=True):
        np.testing.assert_allclose(row, model.logits(np.array([text]))[0, -1], rtol=1e-11, atol=1e-11)
    assert [cache.length for cache in caches] == [4, 3]
    full = KVCache(model, batch=1, capacity=2)
    model.extend(np.array([[1, 5]]), full)
    with pytest.raises(DataError, match="holds 2 of 2 positions"):
        model.extend_each([[9], [2]], JoinedCaches([caches[0], full]))
    assert caches[0].length == 4  # nothing has advanced


def test_a_full_cache_takes_no_more():
    model = lively_model("kernels")
    cache = KVCache(model, batch=1)
    model.extend(np.zeros((1, T - 1), int), cache)
    with pytest.raises(DataError, match=f"holds {T - 1} of {T} positions"):
        model.extend(np.zeros((1, 2), int), cache)
    small = KVCache(model, batch=3, capacity=2)
    assert small.keys.shape[1:4] == small.values.shape[1:4] == (3, model.config.kv_heads, 2)
    with pytest.raises(DataError, match="holds 0 of 2 positions"):
        model.extend(np.zeros((3, 3), int), small)


@pytest.mark.parametrize(("dtype", "lora_rank"), [("bf16", 0), ("float64", 2)], ids=["bf16", "lora"])
def test_a_text_goes_on_with_the_weights_that_it_began_with(dtype, lora_rank):
    """Weights are rounded, or LoRA's factors merged, once for each text and not for
    each token. The next text uses the new weights."""
    sizes = {"n_layer": 1, "n_head": 1, "n_embd": 32, "block_size": T, "vocab_size": V}
    model = GPT(ModelConfig(**sizes, lora_rank=lora_rank), dtype=dtype)
    set_weights_of_order_one(model, seed=4)
    begun, tokens = [KVCache(model, batch=1) for _ in range(2)], np.array([[3, 1, 4, 1, 5]])
    for cache in begun:
        model.extend(tokens[:, :4], cache)
    expected = model.extend(tokens[:, 4:], begun[0])
    for name, array in model.params.items():
        if name.startswith("blocks.") and array.ndim == 2:
            array *= 2.0
    np.testing.assert_array_equal(model.extend(tokens[:, 4:], begun[1]), expected)
    assert not np.allclose(model.extend(tokens, KVCache(model, batch=1)), expected, rtol=0.1)


def constant_model(p) -> GPT:
    """A model that gives the next token the probabilities p, whatever the text."""
    model = GPT(ModelConfig(n_layer=1, n_head=1, n_embd=4, block_size=16, vocab_size=len(p), tie_embeddings=False))
    for array in model.params.values():
        array[:] = 0
    model.params["final_norm.bias"][0] = 1
    model.params["lm_head"][:, 0] = np.log(p)
    return model


def test_the_frequencies_of_generated_tokens():
    p = np.array([0.5, 0.25, 0.15, 0.1])
    tokens = list(generate_tokens(constant_model(p), [0], max_tokens=3000, seed=1))
    counts = np.bincount(tokens, minlength=4)
    assert ((counts - 3000 * p) ** 2 / (3000 * p)).sum() < 16.3  # the 0.999 quantile of chi-square for 3 degrees
    pairs = np.bincount(4 * np.array(tokens[:-1]) + tokens[1:], minlength=16)
    expected = 2999 * np.outer(p, p).ravel()
    assert ((pairs - expected) ** 2 / expected).sum() < 37.7  # 15 degrees: a choice says nothing about the next


def test_the_seed_decides():
    model = lively_model("kernels")

    def text(seed, max_tokens=20):
        return list(generate_tokens(model, [1], max_tokens=max_tokens, seed=seed))

    assert text(5) == text(5)
    assert text(5) != text(6)
    assert text(5, max_tokens=8) == text(5)[:8]
    assert text(5, max_tokens=0) == []


def test_dropout_is_off():
    """lively_model has a dropout of 0.5, with which the cached keys would be wrong."""
    model = lively_model("kernels")
    np.testing.assert_array_equal(model.logits(np.array([[1, 2]])), model.logits(np.array([[1, 2]])))


@pytest.fixture
def scripted(monkeypatch):
    """scripted(tokenizer, ids) is the output of `generate` if the model writes ids."""

    def script(tokenizer, ids, prompt="x"):
        module = import_module("npllm.generation.generate")  # the package has a function of this name
        monkeypatch.setattr(module, "generate_tokens", lambda *_, **__: iter(ids))
        return generate(lively_model("kernels", vocab_size=tokenizer.vocab_size), tokenizer, prompt)

    return script


def test_no_piece_ends_inside_a_character(scripted):
    tokenizer = byte_tokenizer()
    text = "é 漢字 🦜!"
    assert list(scripted(tokenizer, tokenizer.encode(text))) == list(text)
    cut = tokenizer.encode("a🦜")[:-1]
    assert list(scripted(tokenizer, cut)) == ["a"]
    assert list(scripted(tokenizer, [*cut, tokenizer.eot_id])) == ["a"]
    assert "".join(scripted(tokenizer, [*cut, *tokenizer.encode("b")])) == "a\ufffdb"


def test_the_pieces_are_the_text_of_all_tokens():
    """The tokens are random bytes, most of them not UTF-8."""
    tokenizer = byte_tokenizer()
    model = lively_model("kernels", vocab_size=tokenizer.vocab_size)
    ids = list(generate_tokens(model, tokenizer.encode("é"), max_tokens=60, temperature=0.8, seed=2))
    assert tokenizer.eot_id not in ids
    pieces = list(generate(model, tokenizer, "é", max_tokens=60, temperature=0.8, seed=2))
    assert "".join(pieces) == tokenizer.stream_decoder().push(ids)
    assert "" not in pieces


def test_the_end_of_text_ends_it(scripted):
    tokenizer = train_bpe(["the cat sat on the mat"], 260)
    ids = [*tokenizer.encode("cat"), tokenizer.eot_id, *tokenizer.encode("never")]
    assert "".join(scripted(tokenizer, ids)) == "cat"


CHAT = with_special_tokens(byte_tokenizer(), CHAT_TOKENS)


def test_an_answer_ends_with_its_turn_and_shows_no_special_token(scripted):
    """A model that was trained on conversations also stops at the end of a document,
    and at the role token of the user."""
    for end in ("<|end|>", "<|endoftext|>", "<|user|>"):
        ids = CHAT.encode(f"yes{end}no", allowed_special=True)
        assert "".join(scripted(CHAT, ids)) == "yes"


def test_a_question_longer_than_the_window_is_cut_with_a_word(monkeypatch):
    """What the model reads starts with a role token, also after the window slides."""
    model = lively_model("kernels", vocab_size=CHAT.vocab_size)
    extend, shown = model.extend, []

    def watched(tokens, cache):
        if tokens.shape[1] > 1:
            shown.append(CHAT.decode(tokens[0]))
        return extend(tokens, cache)

    monkeypatch.setattr(model, "extend", watched)
    talk = (Message("user", "old"), Message("assistant", "talk"), Message("user", "question"))
    complaint = r"The prompt has 22 tokens, but the model sees 8 at once; its beginning is left out\."
    with pytest.warns(NpllmWarning, match=complaint) as said:
        list(generate(model, CHAT, talk, max_tokens=7, seed=3))
    assert [each.filename for each in said] == [__file__]
    assert shown[0] == "<|user|>stion<|end|><|assistant|>"
    assert len(shown) > 1
    for window in shown[1:]:
        assert window.startswith(("<|user|>", "<|assistant|>"))


@pytest.mark.filterwarnings("error")
def test_a_question_that_fits_is_asked_without_a_word():
    list(generate(lively_model("kernels", vocab_size=CHAT.vocab_size), CHAT, "fits.", max_tokens=1))
    with pytest.raises(NpllmWarning, match="The prompt has 9 tokens"):
        generate(lively_model("kernels", vocab_size=CHAT.vocab_size), byte_tokenizer(), "too long.")


def test_pieces_come_one_by_one(scripted):
    """Streaming: a piece is yielded before the next token is computed."""
    tokenizer = byte_tokenizer()
    asked = []

    def ids():
        for token in tokenizer.encode("abc"):
            asked.append(token)
            yield token

    pieces = scripted(tokenizer, ids())
    assert asked == []
    assert next(pieces) == "a"
    assert len(asked) == 1


def test_an_empty_prompt_is_the_beginning_of_a_document():
    tokenizer = byte_tokenizer()
    model = lively_model("kernels", vocab_size=tokenizer.vocab_size)
    expected = list(generate_tokens(model, [tokenizer.eot_id], max_tokens=9, temperature=0.8))
    assert "".join(generate(model, tokenizer, max_tokens=9)) == tokenizer.stream_decoder().push(expected)

    characters = train_char("ab\n")
    model = lively_model("kernels", vocab_size=3)
    expected = list(generate_tokens(model, characters.encode("\n"), max_tokens=9, temperature=0.8))
    assert "".join(generate(model, characters, "", max_tokens=9)) == characters.decode(expected)
    with pytest.raises(ConfigError, match="give a prompt"):
        generate(lively_model("kernels", vocab_size=2), train_char("ab"))


def test_what_is_wrong_is_said_at_once():
    """Errors come before the first piece: a caller prints the prompt before it asks for
    one."""
    model, tokenizer = lively_model("kernels", vocab_size=3), train_char("ab\n")
    with pytest.raises(ConfigError, match="temperature is -1"):
        generate(model, tokenizer, "a", temperature=-1)
    with pytest.raises(ConfigError, match="top_k is 0"):
        generate_tokens(model, [0], max_tokens=1, top_k=0)
    with pytest.raises(DataError, match="'x'"):
        generate(model, tokenizer, "x")
    for n_outputs, kind, verb in ((1, "a reward model", "score"), (3, "a classifier", "predict")):
        judge = lively_model("kernels", vocab_size=3, n_outputs=n_outputs)
        with pytest.raises(
            ConfigError, match=rf"^This model is {kind}, which only judges texts \(npllm {verb}\); take the"
        ):
            generate(judge, tokenizer, "a")
