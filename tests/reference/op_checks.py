"""One check for each operation: every gradient against differences of a scalar loss.

The arrays are random float64 of order one. The loss is <y, R>, for the output y and a
fixed random R. Each check takes `ops`, a package of operations. So the same check
judges npllm.reference, npllm.kernels and the planted mistakes of
test_negative_controls.py.

Each check asserts two things besides the gradients. Parameter gradients are added to
what was there, and an operation leaves its arguments unchanged.
"""

from contextlib import contextmanager

import numpy as np
from gradient_check import check_gradients

from npllm.reference.lm_head_loss import IGNORED


class Draw:
    """draw(2, 3) returns a (2, 3) array of standard normal numbers.

    The same seed gives the same arrays.
    """

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def __call__(self, *shape):
        return self.rng.standard_normal(shape)

    def integers(self, low, high, *shape):
        return self.rng.integers(low, high, shape)


class ParameterGradients(dict):
    """name -> an array that a backward adds to; it does not start from zero.

    names: those of `arrays` whose gradients are wanted; missing ones are left out.
    """

    def __init__(self, draw, arrays, *names):
        self.start = {name: draw(*arrays[name].shape) for name in names if name in arrays}
        super().__init__((name, start.copy()) for name, start in self.start.items())

    def added(self):
        return {name: self[name] - self.start[name] for name in self}


@contextmanager
def untouched(*arrays):
    """Assert that the block does not change these arrays; None is ignored."""
    arrays = [array for array in arrays if array is not None]
    before = [array.copy() for array in arrays]
    yield
    for old, new in zip(before, arrays, strict=True):
        np.testing.assert_array_equal(new, old, err_msg="an operation changed its argument")


def inner(y, R):
    """The loss <y, R>: each output has its own weight, so that all gradients differ."""
    return float(np.vdot(y, R))


def check_embedding(ops, B, T, C, V, seed, *, n_positions=0, first_position=0, restarting=False):
    draw = Draw(seed)
    tokens = draw.integers(0, V, B, T)
    options = {"first_position": first_position}
    if restarting:
        options["positions"] = draw.integers(0, n_positions, B, T)
    arrays = {"token_embedding": draw(V, C)}
    if n_positions:
        arrays["position_embedding"] = draw(n_positions, C)
    R = draw(B, T, C)

    def forward():
        return ops.embedding_forward(tokens, arrays["token_embedding"], arrays.get("position_embedding"), **options)

    grads = ParameterGradients(draw, arrays, *arrays)
    with untouched(tokens, R, *arrays.values()):
        y, cache = forward()
        ops.embedding_backward(R, cache, grads["token_embedding"], grads.get("position_embedding"))
    assert y.shape == (B, T, C)
    check_gradients(lambda: inner(forward()[0], R), arrays, grads.added())


def check_linear(ops, N, n_in, n_out, seed, *, epilogue="none", bias=True):
    draw = Draw(seed)
    arrays = {"x": draw(N, n_in), "weight": draw(n_in, n_out)}
    if bias:
        arrays["bias"] = draw(n_out)
    if epilogue == "residual":
        arrays["residual"] = draw(N, n_out)
    R = draw(N, n_out)

    def forward():
        options = {"epilogue": epilogue, "residual": arrays.get("residual")}
        return ops.linear_forward(arrays["x"], arrays["weight"], arrays.get("bias"), **options)

    grads = ParameterGradients(draw, arrays, "weight", "bias")
    with untouched(R, *arrays.values()):
        _, z = forward()
        weight, dweight = arrays["weight"], grads["weight"]
        dx = ops.linear_backward(R, arrays["x"], weight, dweight, grads.get("bias"), pre_activation=z)
    gradients = {"x": dx, **grads.added()}
    if epilogue == "residual":
        gradients["residual"] = R  # its gradient is dy, so the backward does not return it
    check_gradients(lambda: inner(forward()[0], R), arrays, gradients)


def check_gelu(ops, N, F, seed):
    draw = Draw(seed)
    x, R = 2 * draw(N, F), draw(N, F)
    with untouched(x, R):
        dx = ops.gelu_backward(R, x)
    check_gradients(lambda: inner(ops.gelu_forward(x), R), {"x": x}, {"x": dx})


def check_relu2(ops, N, F, seed):
    draw = Draw(seed)
    x, R = draw(N, F), draw(N, F)
    x += np.copysign(0.01, x)  # the second derivative jumps at 0, so differences must not cross it
    with untouched(x, R):
        dx = ops.relu2_backward(R, x)
    check_gradients(lambda: inner(ops.relu2_forward(x), R), {"x": x}, {"x": dx})


def check_layernorm(ops, N, C, seed, *, bias=True):
    draw = Draw(seed)
    arrays = {"x": draw(N, C), "weight": draw(C)}
    if bias:
        arrays["bias"] = draw(C)
    R = draw(N, C)

    def forward():
        return ops.layernorm_forward(arrays["x"], arrays["weight"], arrays.get("bias"))

    grads = ParameterGradients(draw, arrays, "weight", "bias")
    with untouched(R, *arrays.values()):
        _, cache = forward()
        dx = ops.layernorm_backward(R, cache, arrays["weight"], grads["weight"], grads.get("bias"))
    check_gradients(lambda: inner(forward()[0], R), arrays, {"x": dx, **grads.added()})


def check_rmsnorm(ops, N, C, seed):
    draw = Draw(seed)
    arrays = {"x": draw(N, C), "weight": draw(C)}
    R = draw(N, C)

    def forward():
        return ops.rmsnorm_forward(arrays["x"], arrays["weight"])

    grads = ParameterGradients(draw, arrays, "weight")
    with untouched(R, *arrays.values()):
        _, cache = forward()
        dx = ops.rmsnorm_backward(R, cache, arrays["weight"], grads["weight"])
    check_gradients(lambda: inner(forward()[0], R), arrays, {"x": dx, **grads.added()})


def check_add_norm(ops, N, C, seed, *, norm="layernorm", bias=True):
    draw = Draw(seed)
    arrays = {"x": draw(N, C), "branch": draw(N, C), "weight": draw(C)}
    if norm == "layernorm" and bias:
        arrays["bias"] = draw(C)
    R_total, R = draw(N, C), draw(N, C)

    def forward():
        x, branch, weight = arrays["x"], arrays["branch"], arrays["weight"]
        return ops.add_norm_forward(x, branch, weight, arrays.get("bias"), norm=norm)

    def loss():
        total, y, _ = forward()
        return inner(total, R_total) + inner(y, R)

    grads = ParameterGradients(draw, arrays, "weight", "bias")
    with untouched(R_total, R, *arrays.values()):
        _, _, cache = forward()
        weight = arrays["weight"]
        dx = ops.add_norm_backward(R_total, R, cache, weight, grads["weight"], grads.get("bias"), norm=norm)
    check_gradients(loss, arrays, {"x": dx, "branch": dx, **grads.added()})


def check_swiglu(ops, N, F, seed):
    draw = Draw(seed)
    arrays = {"gate": 2 * draw(N, F), "up": draw(N, F)}
    R = draw(N, F)

    def forward():
        return ops.swiglu_forward(arrays["gate"], arrays["up"])

    with untouched(R, *arrays.values()):
        _, cache = forward()
        dgate, dup = ops.swiglu_backward(R, cache)
    check_gradients(lambda: inner(forward()[0], R), arrays, {"gate": dgate, "up": dup})


def split_packed(qkv, n_head, n_kv_head):
    """Name -> view of the columns of q, k or v in a packed array, (B, T, (H+2K)·D)."""
    D = qkv.shape[-1] // (n_head + 2 * n_kv_head)
    q, k, v = np.split(qkv, [n_head * D, (n_head + n_kv_head) * D], axis=-1)
    return {"q": q, "k": k, "v": v}


def check_rotary(ops, B, T, K, G, D, seed, *, first_position=0):
    draw = Draw(seed)
    n_head = K * G
    qkv, R = draw(B, T, (n_head + 2 * K) * D), draw(B, T, (n_head + 2 * K) * D)
    cos, sin = (table[first_position:] for table in ops.rotary_tables(first_position + T, D, np.float64))
    with untouched(qkv, R, cos, sin):
        dqkv = ops.rotary_backward(R, cos, sin, n_head, K)
    gradients = split_packed(dqkv, n_head, K)
    check_gradients(
        lambda: inner(ops.rotary_forward(qkv, cos, sin, n_head, K), R), split_packed(qkv, n_head, K), gradients
    )


def check_qk_norm(ops, B, T, K, G, D, seed):
    draw = Draw(seed)
    n_head = K * G
    qkv, R = draw(B, T, (n_head + 2 * K) * D), draw(B, T, (n_head + 2 * K) * D)
    weights = {"q_weight": draw(D), "k_weight": draw(D)}

    def forward():
        return ops.qk_norm_forward(qkv, *weights.values(), n_head, K)

    grads = ParameterGradients(draw, weights, *weights)
    with untouched(qkv, R, *weights.values()):
        _, cache = forward()
        dqkv = ops.qk_norm_backward(R, cache, *weights.values(), *grads.values())
    arrays, gradients = split_packed(qkv, n_head, K) | weights, split_packed(dqkv, n_head, K) | grads.added()
    check_gradients(lambda: inner(forward()[0], R), arrays, gradients)


def check_dropout(ops, shape, rate, seed):
    draw = Draw(seed)
    x, R = draw(*shape), draw(*shape)
    key = ops.DropoutKey(seed=seed, step=3, stream=5, first=7)
    with untouched(x, R):
        dx = ops.dropout_backward(R, rate, key)
    check_gradients(lambda: inner(ops.dropout_forward(x, rate, key), R), {"x": x}, {"x": dx})


def draw_starts(draw, B, T):
    """Where the document of each position starts, (B, T) int32.

    The rows are cut into documents of about six positions.
    """
    cuts = draw.rng.random((B, T)) < 1 / 6
    return np.maximum.accumulate(np.where(cuts, np.arange(T), 0), axis=1).astype(np.int32)


def check_attention(ops, B, T, K, G, D, seed, *, rate=0.0, packed=False):
    draw = Draw(seed)
    n_head = K * G
    qkv, R = draw(B, T, (n_head + 2 * K) * D), draw(B, T, n_head * D)
    options = {"rate": rate, "key": ops.DropoutKey(seed=seed, step=2, stream=9, first=6)} if rate else {}
    starts = draw_starts(draw, B, T) if packed else None

    def forward():
        return ops.attention_forward(qkv, n_head, K, starts=starts, **options)

    with untouched(qkv, R, starts):
        _, cache = forward()
        dqkv = ops.attention_backward(R, cache, n_head, K, **options)
    gradients = split_packed(dqkv, n_head, K)
    check_gradients(lambda: inner(forward()[0], R), split_packed(qkv, n_head, K), gradients)


def check_packed_attention(ops, lengths, K, G, D, seed):
    """Assert that packed documents have the outputs and gradients that they have alone.

    Row 0 holds documents of these lengths, one after the other; row 1 is one document.
    """
    draw, n_head, edges = Draw(seed), K * G, np.cumsum([0, *lengths])
    T = edges[-1]
    qkv, R = draw(2, T, (n_head + 2 * K) * D), draw(2, T, n_head * D)
    starts = np.array([np.repeat(edges[:-1], lengths), np.zeros(T)], np.int32)
    y, cache = ops.attention_forward(qkv, n_head, K, starts=starts)
    dqkv = ops.attention_backward(R, cache, n_head, K)
    documents = [np.s_[:1, first:end] for first, end in zip(edges, edges[1:], strict=False)]
    for document in (*documents, np.s_[1:]):
        alone = [np.ascontiguousarray(array[document]) for array in (qkv, R)]
        y_alone, cache = ops.attention_forward(alone[0], n_head, K)
        dqkv_alone = ops.attention_backward(alone[1], cache, n_head, K)
        np.testing.assert_allclose(y[document], y_alone, rtol=1e-11, atol=1e-13, err_msg="leakage into y")
        np.testing.assert_allclose(dqkv[document], dqkv_alone, rtol=1e-11, atol=1e-13, err_msg="leakage into dqkv")


def draw_targets(draw, N, V, ignored_share=0.3):
    """Targets, (N,); about ignored_share of them are ignored."""
    return np.where(draw.rng.random(N) < ignored_share, IGNORED, draw.integers(0, V, N))


def check_lm_head_loss(ops, N, C, V, seed):
    draw = Draw(seed)
    arrays = {"x": draw(N, C), "weight": draw(V, C)}
    targets, dnll = draw_targets(draw, N, V), draw(N)

    def forward():
        return ops.lm_head_loss_forward(arrays["x"], arrays["weight"], targets)

    grads = ParameterGradients(draw, arrays, "weight")
    with untouched(targets, dnll, *arrays.values()):
        nll, cache = forward()
        dx = ops.lm_head_loss_backward(dnll, cache, arrays["weight"], grads["weight"])
    assert np.all(nll[targets == IGNORED] == 0)
    check_gradients(lambda: inner(forward()[0], dnll), arrays, {"x": dx, **grads.added()})


def check_lm_head_policy(ops, N, C, V, seed, *, with_entropy=True):
    draw = Draw(seed)
    arrays = {"x": draw(N, C), "weight": draw(V, C)}
    targets, dlog_probability = draw_targets(draw, N, V), draw(N)
    dentropy = draw(N) if with_entropy else None

    def forward():
        return ops.lm_head_policy_forward(arrays["x"], arrays["weight"], targets)

    def loss():
        log_probability, entropy, _ = forward()
        return inner(log_probability, dlog_probability) + (inner(entropy, dentropy) if with_entropy else 0.0)

    grads = ParameterGradients(draw, arrays, "weight")
    with untouched(targets, dlog_probability, dentropy, *arrays.values()):
        log_probability, entropy, cache = forward()
        dx = ops.lm_head_policy_backward(dlog_probability, dentropy, cache, arrays["weight"], grads["weight"])
    assert not log_probability[targets == IGNORED].any()
    assert not entropy[targets == IGNORED].any()
    check_gradients(loss, arrays, {"x": dx, **grads.added()})


def check_lm_head_loss_and_grad(ops, N, C, V, n_targets, seed):
    """Check the loss and gradients of a part of a batch.

    n_targets: the targets of the whole batch, so any number from this part's own up.
    """
    draw = Draw(seed)
    arrays = {"x": draw(N, C), "weight": draw(V, C)}
    targets = draw_targets(draw, N, V)

    def mean_loss():
        nll, _ = ops.lm_head_loss_forward(arrays["x"], arrays["weight"], targets)
        return float(nll.sum()) / n_targets

    grads = ParameterGradients(draw, arrays, "weight")
    with untouched(targets, *arrays.values()):
        loss, dx = ops.lm_head_loss_and_grad(arrays["x"], arrays["weight"], targets, n_targets, grads["weight"])
    assert isinstance(loss, float)
    np.testing.assert_allclose(loss, mean_loss(), rtol=1e-13, err_msg="the loss is not that of the forward")
    check_gradients(mean_loss, arrays, {"x": dx, **grads.added()})


def check_two_adam_steps(ops):
    """Two steps of AdamW by hand: lr 0.1, betas 0.9 and 0.95, decay 0.5, p = 1.

    Step 1, g = 1:
        m = 0.1*1 = 0.1                     m_hat = 0.1 / (1 - 0.9) = 1
        v = 0.05*1 = 0.05                   v_hat = 0.05 / (1 - 0.95) = 1
        p = 1*(1 - 0.1*0.5) - 0.1 * 1/1 = 0.85
    Step 2, g = 3:
        m = 0.9*0.1 + 0.1*3 = 0.39          m_hat = 0.39 / (1 - 0.81) = 2.0526315789
        v = 0.95*0.05 + 0.05*9 = 0.4975     v_hat = 0.4975 / (1 - 0.9025) = 5.1025641026
        p = 0.85*0.95 - 0.1 * 2.0526315789 / 2.2588855886
          = 0.8075 - 0.0908692 = 0.7166308
    """
    params, m, v = np.array([1.0]), np.zeros(1), np.zeros(1)
    options = {"lr": 0.1, "beta1": 0.9, "beta2": 0.95, "eps": 1e-12, "weight_decay": 0.5, "decoupled": True}
    by_hand = [(1.0, 0.1, 0.05, 0.85), (3.0, 0.39, 0.4975, 0.7166308)]
    for step, (gradient, expected_m, expected_v, expected) in enumerate(by_hand, start=1):
        ops.adam_update(params, np.array([gradient]), m, v, **options, step=step)
        np.testing.assert_allclose(m, [expected_m], rtol=1e-14)
        np.testing.assert_allclose(v, [expected_v], rtol=1e-14)
        np.testing.assert_allclose(params, [expected], rtol=0, atol=5e-8)
