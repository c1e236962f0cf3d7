"""The whole algorithm in one sitting: text, tokens, training, gradients, and new text.

`python -m npllm.reference` runs it. It needs NumPy and nothing else, and seconds.
"""

import numpy as np

from npllm.reference.adam import adam_update
from npllm.reference.attention import softmax
from npllm.reference.differences import largest_error
from npllm.reference.transformer import (
    head_name,
    loss_and_gradients,
    mean_loss,
    transformer_forward,
)
from npllm.reference.weights import TransformerConfig

TEXT = """\
The lighthouse counts the ships at night,
and every ship can count the light.
The harbour counts the ropes and sails,
the keeper counts the winter gales.
The seagull counts the silver fish,
the baker counts each empty dish.
And when the morning counts the foam,
the ships have all been counted home.
"""
STEPS, BATCH, LENGTH = 400, 8, 24  # updates; rows of a batch; tokens of a row
LEARNING_RATE = 1e-2
ADAM = {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.0, "decoupled": True}
CHECKED = 8  # entries of each parameter


class Characters:
    """The simplest tokenizer: each character of the text is a token."""

    def __init__(self, text: str):
        self.vocabulary = sorted(set(text))

    def encode(self, text: str) -> np.ndarray:
        return np.array([self.vocabulary.index(character) for character in text])

    def decode(self, tokens) -> str:
        return "".join(self.vocabulary[token] for token in tokens)


def small_network(vocab_size: int) -> TransformerConfig:
    """GPT-2's choices, at a size that NumPy trains in seconds."""
    return TransformerConfig(
        vocab_size=vocab_size,
        block_size=LENGTH,
        n_layer=2,
        n_head=4,
        kv_heads=4,
        head_width=8,
        n_embd=32,
        mlp_width=128,
    )


def random_batch(tokens, rows: int, length: int, rng):
    """Windows of the text and, as targets, the same windows one token later.

    The text is a ring: after its end comes its beginning.
    """
    starts = rng.integers(0, len(tokens), rows)
    places = (starts[:, None] + np.arange(length + 1)) % len(tokens)
    windows = tokens[places]  # (rows, length + 1)
    return windows[:, :-1], windows[:, 1:]


def train(config, p, tokens, steps: int, rng):
    """Change the parameters p in place; yield the loss before each update.

    The learning rate rises for 20 updates, stays, and falls to zero in the second half.
    """
    m = {name: np.zeros_like(array) for name, array in p.items()}
    v = {name: np.zeros_like(array) for name, array in p.items()}
    for step in range(1, steps + 1):
        batch = random_batch(tokens, BATCH, LENGTH, rng)
        loss, dp = loss_and_gradients(config, p, *batch)
        lr = LEARNING_RATE * min(1.0, step / 20, (steps + 1 - step) / (steps / 2))
        for name in p:
            moments = m[name], v[name]
            adam_update(p[name], dp[name], *moments, lr=lr, step=step, **ADAM)
        yield loss


def gradient_errors(config, p, tokens, rng):
    """Name and largest relative error of every parameter's gradient.

    The gradients are compared with central differences of the loss, at CHECKED random
    entries of each parameter.
    """
    batch = random_batch(tokens, 2, config.block_size, rng)
    _, dp = loss_and_gradients(config, p, *batch)
    for name, array in p.items():
        places = rng.choice(array.size, CHECKED, replace=False)
        yield name, largest_error(lambda: mean_loss(config, p, *batch), array, dp[name], places)


def write(config, p, tokens, count: int, rng, temperature: float = 0.3):
    """The tokens, (n,), and `count` more, each drawn from what the network says."""
    tokens = list(tokens)
    for _ in range(count):
        hidden, _ = transformer_forward(config, p, np.array([tokens[-config.block_size :]]))
        logits = hidden[-1] @ p[head_name(config)].T  # (V,)
        tokens.append(rng.choice(config.vocab_size, p=softmax(logits / temperature)))
    return tokens
