"""The whole network, forward and backward: start reading here.

    tokens ─► embedding ─► block 0 ─► ... ─► block L-1 ─► final norm ─► head ─► loss

and backward, from the loss to the tables of the embedding:

    embedding ◄─ block 0 ◄─ ... ◄─ block L-1 ◄─ final norm ◄─ head ◄─ 1

The network reads (B, T) tokens and says, at every position, how likely each token of
the vocabulary is to come next. It is trained to give the true next token a high
probability. `block.py` holds the blocks; each operation has a file of its own.
`python -m npllm.reference` trains this network on a few lines of text.

Parameters are a dict of arrays. A tied head is the table of the embedding itself, which
then has two uses, and its gradient is the sum of both.
"""

from typing import Any, NamedTuple

import numpy as np

from npllm.reference.block import block_backward, block_forward, norm_backward, norm_forward
from npllm.reference.embedding import embedding_backward, embedding_forward
from npllm.reference.lm_head_loss import IGNORED, lm_head_loss_and_grad, lm_head_loss_forward


class TransformerCache(NamedTuple):
    embedding: Any
    blocks: list
    final_norm: Any


def transformer_forward(config, p, tokens):
    """tokens: (B, T) integers below V.

    Returns the rows before the head, (N, C), and the cache.
    """
    positions = p.get("position_embedding")  # None with rotary positions
    x, embedding = embedding_forward(tokens, p["token_embedding"], positions)
    x, blocks = x.reshape(-1, config.n_embd), []
    for layer in range(config.n_layer):
        x, cache = block_forward(config, p, f"blocks.{layer}", x, tokens.shape[1])
        blocks.append(cache)
    hidden, final_norm = norm_forward(config, p, "final_norm", x)
    return hidden, TransformerCache(embedding, blocks, final_norm)


def transformer_backward(config, p, dp, dhidden, cache):
    """Adds the gradients of all parameters below the head, for dhidden, (N, C)."""
    dx = norm_backward(config, p, dp, "final_norm", dhidden, cache.final_norm)
    for layer in reversed(range(config.n_layer)):
        dx = block_backward(config, p, dp, f"blocks.{layer}", dx, cache.blocks[layer])
    dx = dx.reshape(*cache.embedding.tokens.shape, -1)
    embedding_backward(dx, cache.embedding, dp["token_embedding"], dp.get("position_embedding"))


def loss_and_gradients(config, p, tokens, targets):
    """Mean negative log-likelihood of the targets, in nats, and its gradients by name.

    tokens, targets: (B, T) integers below V; a target of -1 takes no part.
    """
    dp = {name: np.zeros_like(array) for name, array in p.items()}
    hidden, cache = transformer_forward(config, p, tokens)
    head, n_targets = head_name(config), np.count_nonzero(targets != IGNORED)
    loss, dhidden = lm_head_loss_and_grad(hidden, p[head], targets.reshape(-1), n_targets, dp[head])
    transformer_backward(config, p, dp, dhidden, cache)
    return loss, dp


def mean_loss(config, p, tokens, targets):
    """The loss alone, by the forward."""
    hidden, _ = transformer_forward(config, p, tokens)
    nll, _ = lm_head_loss_forward(hidden, p[head_name(config)], targets.reshape(-1))
    return float(nll.sum()) / np.count_nonzero(targets != IGNORED)


def head_name(config):
    """The parameter that is the head's weight, (V, C)."""
    return "token_embedding" if config.tie_embeddings else "lm_head"
