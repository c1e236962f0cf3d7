"""Single operations, as a PyTorch program would call them.

Each function takes inputs and returns a function that does the work.
"""

import torch
import torch.nn.functional as F


def matmul(a, b):
    return lambda: (a @ b,)


def softmax(x):
    return lambda: (torch.softmax(x, dim=-1),)


def layernorm(x, weight, bias):
    return lambda: (F.layer_norm(x, weight.shape, weight, bias, eps=1e-5),)


def gelu(x):
    return lambda: (F.gelu(x, approximate="tanh"),)


def attention(qkv):
    """qkv: (B, T, 3, H, D)."""
    q, k, v = (qkv[:, :, i].transpose(1, 2) for i in range(3))
    return lambda: (F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2),)


def cross_entropy(x, weight, targets):
    targets = targets.long()
    x.requires_grad_(), weight.requires_grad_()

    def work():
        x.grad = weight.grad = None
        with torch.enable_grad():
            loss = F.cross_entropy(F.linear(x, weight), targets)
            loss.backward()
        return loss.detach().view(1), x.grad, weight.grad

    return work


def adamw(params, m, v, grads):
    """The moments start at zero, as m and v do."""
    params.grad = grads
    optimizer = torch.optim.AdamW([params], lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, fused=True)

    def work():
        optimizer.step()
        return params, optimizer.state[params]["exp_avg"], optimizer.state[params]["exp_avg_sq"]

    return work


OPERATIONS = {
    function.__name__: function for function in (matmul, softmax, layernorm, gelu, attention, cross_entropy, adamw)
}
