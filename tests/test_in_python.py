"""From a text to a model that writes, in plain Python, as README.md shows it."""

from pydoc_data.topics import topics

import numpy as np

import npllm

PROGRAM = """
import npllm

text = open("notes.txt", encoding="utf-8").read()
tokenizer = npllm.train_bpe([text], vocab_size=512)
tokens = tokenizer.encode(text)

config = npllm.ModelConfig(n_layer=2, n_head=4, n_embd=64, block_size=32, vocab_size=512)
model = npllm.GPT(config, seed=0)  # backend="reference": the same model in plain NumPy
optimizer = npllm.AdamW(model, lr=3e-3, weight_decay=0.1)
for step, (x, y) in zip(range(100), npllm.batches(tokens, block_size=32, rows=8)):
    loss = model.loss_and_grad(x, y)  # adds to model.grads
    grad_norm = optimizer.step(grad_clip=1.0)  # clips, updates, sets the gradients to zero

npllm.save(model, tokenizer, "my-model")
model, tokenizer = npllm.load("my-model")
print(model)
for piece in npllm.generate(model, tokenizer, "The ", max_tokens=16):
    print(piece, end="")
"""


def test_text_to_model_in_twenty_lines(tmp_path, monkeypatch, capsys):
    """Fails if a name is missing, if the loop does not learn, or if what is loaded is
    not what was trained."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("\n".join(topics.values())[:40_000], encoding="utf-8")
    names = {}
    exec(PROGRAM, names)
    assert len(PROGRAM.strip().splitlines()) <= 20
    assert names["loss"] < np.log(512) - 1.5
    assert abs(names["model"].loss(names["x"], names["y"]) - names["loss"]) < 0.2
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith(
        "GPT(2 layers, width 64, 4 heads, block 32, vocabulary 512, learned, layernorm, gelu; "
    )
    assert "".join(printed[1:])


def test_the_batches_of_an_epoch_hold_each_target_once():
    tokens = np.arange(1000)
    drawn = npllm.batches(tokens.tolist(), block_size=7, rows=4, seed=5)
    x, y = next(drawn)
    assert x.shape == y.shape == (4, 7)
    assert x.dtype == y.dtype == np.int32
    np.testing.assert_array_equal(y, x + 1)
    targets = np.concatenate([y, *(next(drawn)[1] for _ in range(30))]).ravel()
    assert len(np.unique(targets)) == len(targets)
    again = npllm.batches(tokens, block_size=7, rows=4, seed=5)
    np.testing.assert_array_equal(next(again)[0], x)
