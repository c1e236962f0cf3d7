"""GPT-2 in PyTorch, with npllm's parameter names.

It equals npllm's network with `norm = layernorm, position = learned, mlp = gelu` and
tied embeddings. Letters: B batch, T time, C width, H heads, D head width, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.peers.torch_files import read_file


class Attention(nn.Module):
    def __init__(self, C, H):
        super().__init__()
        self.n_head = H
        self.qkv, self.out = nn.Linear(C, 3 * C), nn.Linear(C, C)

    def forward(self, x):
        B, T, C = x.shape
        heads = self.qkv(x).view(B, T, 3, self.n_head, -1)  # (B, T, 3, H, D)
        q, k, v = (heads[:, :, i].transpose(1, 2) for i in range(3))  # (B, H, T, D)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(B, T, C))


class MLP(nn.Module):
    def __init__(self, C):
        super().__init__()
        self.up, self.down = nn.Linear(C, 4 * C), nn.Linear(4 * C, C)

    def forward(self, x):
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, C, H):
        super().__init__()
        self.norm_1, self.attention = nn.LayerNorm(C, eps=1e-5), Attention(C, H)
        self.norm_2, self.mlp = nn.LayerNorm(C, eps=1e-5), MLP(C)

    def forward(self, x):
        x = x + self.attention(self.norm_1(x))
        return x + self.mlp(self.norm_2(x))


class GPT(nn.Module):
    def __init__(self, n_layer, n_head, n_embd, block_size, vocab_size):
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, n_embd)
        self.position_embedding = nn.Embedding(block_size, n_embd)
        self.blocks = nn.ModuleList(Block(n_embd, n_head) for _ in range(n_layer))
        self.final_norm = nn.LayerNorm(n_embd, eps=1e-5)

    def forward(self, tokens, targets):
        """Return the mean negative log-likelihood of the targets.

        tokens, targets: (B, T).
        """
        x = self.token_embedding(tokens) + self.position_embedding.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.final_norm(x), self.token_embedding.weight)  # (B, T, V)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    @torch.no_grad()
    def load(self, path, layout):
        """Copy npllm's parameters.

        path: a file of float32. layout: name -> (offset, shape).
        """
        names = {
            name.removesuffix(".weight") if "embedding" in name else name: p for name, p in self.named_parameters()
        }
        if names.keys() != layout.keys():
            raise ValueError(f"other parameters: {sorted(names.keys() ^ layout.keys())}")
        flat = read_file(path, torch.float32)
        for name, parameter in names.items():
            start, shape = layout[name]
            ours = flat[start : start + parameter.numel()].view(shape)
            is_linear = ours.dim() == 2 and "embedding" not in name
            parameter.copy_(ours.T if is_linear else ours)  # nn.Linear is (out, in)
