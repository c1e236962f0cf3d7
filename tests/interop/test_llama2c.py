"""Files of llama2.c, read back by hand."""

import struct

import numpy as np
import pytest
from model.model_cases import GPT_2, LLAMA, QWEN, set_weights_of_order_one
from small_runs import refused, run

import npllm
from npllm.errors import ConfigError
from npllm.interop import llama2c
from npllm.model import GPT, ModelConfig
from npllm.tokenizer import byte_tokenizer, train_bpe, train_char

# "ab", then "abab": the pieces are "abab" and " abab".
TOKENIZER = train_bpe(["abab abab"], 256 + 2 + 1)
AB, ABAB, END = 256, 257, 258
SIZES = {"n_layer": 2, "n_head": 4, "n_embd": 16, "block_size": 12}
TIED = LLAMA | {"n_kv_head": 2, "tie_embeddings": True}


def small_model(tokenizer=TOKENIZER, **fields):
    model = GPT(ModelConfig(**(SIZES | fields), vocab_size=tokenizer.vocab_size), backend="reference")
    set_weights_of_order_one(model, 1)
    return model


def read_model(path):
    """The seven sizes and the tensors, as run.c finds them."""
    data = path.read_bytes()
    C, F, L, H, K, V, T = struct.unpack("<7i", data[:28])
    D, shared, V = C // H, V > 0, abs(V)
    shapes = {
        "embedding": (V, C), "norm_1": (L, C), "q": (L, H * D, C), "k": (L, K * D, C), "v": (L, K * D, C),
        "o": (L, C, H * D), "norm_2": (L, C), "w1": (L, F, C), "w2": (L, C, F), "w3": (L, F, C), "norm": (C,),
        "cos": (T, D // 2), "sin": (T, D // 2),
    } | ({} if shared else {"head": (V, C)})  # fmt: skip
    values, found, end = np.frombuffer(data[28:], "<f4"), {}, 0
    for name, shape in shapes.items():
        found[name] = values[end : end + np.prod(shape)].reshape(shape)
        end += np.prod(shape)
    assert end == len(values)
    return (C, F, L, H, K, V, T), found | ({"head": found["embedding"]} if shared else {})


def read_tokenizer(path, n_tokens):
    """The longest length and (score, bytes) of each token."""
    data, entries, end = path.read_bytes(), [], 4
    for _ in range(n_tokens):
        score, length = struct.unpack("<fi", data[end : end + 8])
        entries.append((score, data[end + 8 : end + 8 + length]))
        end += 8 + length
    assert end == len(data)
    return struct.unpack("<i", data[:4])[0], entries


def logits_of(sizes, w, tokens):
    """What run.c computes of a sequence: (T, V)."""
    C, F, L, H, K, V, _ = sizes
    D, T, x = C // H, len(tokens), w["embedding"][tokens].astype(float)

    def norm(x, weight):
        return x / np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-5) * weight

    def rotated(x):  # (T, heads, D): the elements 2i and 2i + 1 are one point of the plane
        angle = np.arange(T)[:, None, None] * 10000.0 ** (-np.arange(0, D, 2) / D)
        return ((x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * angle)).view(float)

    for layer in range(L):
        h = norm(x, w["norm_1"][layer])
        q, k = (rotated((h @ w[name][layer].T).reshape(T, -1, D)) for name in "qk")
        k, v = (array.repeat(H // K, axis=1) for array in (k, (h @ w["v"][layer].T).reshape(T, K, D)))
        scores = np.einsum("thd,shd->hts", q, k) / np.sqrt(D) + np.where(np.tri(T), 0.0, -np.inf)
        weights = np.exp(scores - scores.max(axis=2, keepdims=True))
        weights /= weights.sum(axis=2, keepdims=True)
        x = x + np.einsum("hts,shd->thd", weights, v).reshape(T, C) @ w["o"][layer].T
        h = norm(x, w["norm_2"][layer])
        gate = h @ w["w1"][layer].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w["w3"][layer].T)) @ w["w2"][layer].T
    return norm(x, w["norm"]) @ w["head"].T


def test_sizes_and_weights_are_exact(tmp_path):
    model = small_model(**TIED)
    llama2c.save(model, TOKENIZER, tmp_path)
    sizes, found = read_model(tmp_path / "model.bin")
    assert sizes == (16, 64, 2, 4, 2, 259, 12)
    params = model.params
    for layer in range(2):
        packed = params[f"blocks.{layer}.attention.qkv.weight"]
        rows = [0, 2, 1, 3]  # of a head of width 4: the pairs (0, 2) and (1, 3)
        for name, first, n_heads in (("q", 0, 4), ("k", 16, 2)):
            columns = [first + 4 * head + row for head in range(n_heads) for row in rows]
            np.testing.assert_array_equal(found[name][layer], packed[:, columns].T)
        np.testing.assert_array_equal(found["v"][layer], packed[:, 24:].T)
        ours = {"o": "attention.out", "w1": "mlp.gate", "w2": "mlp.down", "w3": "mlp.up"}
        for name, part in ours.items():
            np.testing.assert_array_equal(found[name][layer], params[f"blocks.{layer}.{part}.weight"].T)
        for name in ("norm_1", "norm_2"):
            np.testing.assert_array_equal(found[name][layer], params[f"blocks.{layer}.{name}.weight"])
    np.testing.assert_array_equal(found["norm"], params["final_norm.weight"])
    assert found["cos"][3, 1] == np.float32(np.cos(3 * 10000**-0.5))
    assert found["sin"][3, 1] == np.float32(np.sin(3 * 10000**-0.5))


@pytest.mark.parametrize("fields", [TIED, LLAMA], ids=["tied", "with a head"])
def test_run_computes_the_same(tmp_path, fields):
    """A model of the formulas in run.c gives our logits, for renumbered tokens."""
    model = small_model(**fields)
    llama2c.save(model, TOKENIZER, tmp_path)
    ours = np.array([END, AB, ABAB, *TOKENIZER.encode("x\u00e9 ")])
    theirs = np.array([1, 257, 258, ord("x") + 3, 0xC3 + 3, 0xA9 + 3, ord(" ") + 3])
    logits = logits_of(*read_model(tmp_path / "model.bin"), theirs)
    np.testing.assert_allclose(logits[:, theirs], model.logits(ours[None])[0][:, ours], rtol=1e-4, atol=1e-4)


def test_the_tokens(tmp_path):
    """Numbers are those that run.c has in its code; scores are minus the ranks."""
    llama2c.save(small_model(**TIED), TOKENIZER, tmp_path)
    longest, entries = read_tokenizer(tmp_path / "tokenizer.bin", 259)
    texts = [text for _, text in entries]
    assert longest == len("<|endoftext|>")
    assert texts[:4] == [b"\xfe", b"<|endoftext|>", b"\xff", b"<0x00>"]
    assert texts[4:257] == [bytes([byte]) for byte in range(1, 0xFE)]
    assert entries[257:] == [(0.0, b"ab"), (-1.0, b"abab")]
    assert entries[1][0] == np.float32(-1e10)  # run never merges a prompt into it


def test_bytes_alone_have_room(tmp_path):
    """The smallest vocabulary: 256 bytes and the end of text."""
    tokenizer = byte_tokenizer()
    llama2c.save(small_model(tokenizer, **TIED), tokenizer, tmp_path)
    _, entries = read_tokenizer(tmp_path / "tokenizer.bin", 257)
    assert entries[256][1] == b"\xfd"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (GPT_2, "needs model.norm = rmsnorm, model.position = rotary, model.mlp = swiglu, model.bias = False"),
        (QWEN, "needs model.qk_norm = False"),
        (LLAMA | {"bias": True}, "needs model.bias = False"),
        (LLAMA | {"n_outputs": 1}, "has a second head"),
        (GPT_2 | {"mlp": "relu2"}, "No family holds this network"),
        (LLAMA | {"norm_eps": 1e-6, "rope_theta": 5e5}, "needs model.norm_eps = 1e-05, model.rope_theta = 10000.0"),
        (LLAMA | {"head_dim": 6}, "needs model.head_dim = model.n_embd / model.n_head"),
    ],
)
def test_other_networks_are_refused(tmp_path, fields, message):
    with pytest.raises(ConfigError, match=message):
        llama2c.save(small_model(**fields), TOKENIZER, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_of_characters_is_refused(tmp_path):
    tokenizer = train_char(["abc"])
    with pytest.raises(ConfigError, match=r"llama2\.c has no tokenizers of whole characters"):
        llama2c.save(small_model(tokenizer, **TIED), tokenizer, tmp_path / "out")


def test_the_command_says_the_limits(tmp_path, capsys):
    made, out = tmp_path / "run", tmp_path / "c"
    npllm.save(small_model(**TIED), TOKENIZER, made)
    assert run("export", made, "--out", out, "--format", "llama2c") == 0
    assert "a prompt can get other tokens than here" in " ".join(capsys.readouterr().out.split())
    assert sorted(path.name for path in out.iterdir()) == ["model.bin", "tokenizer.bin"]
    assert "is not empty" in refused(capsys, "export", made, "--out", out, "--format", "llama2c", exit_code=2)
