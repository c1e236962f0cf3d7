"""The optimisers on a real model, compared with loops from the published algorithms."""

import numpy as np
import pytest

from npllm.errors import TrainingError
from npllm.model import GPT, ModelConfig
from npllm.optim import SGD, Adam, AdamW, Muon, OptimConfig, build_optimizer

CONFIG = ModelConfig(n_layer=1, n_head=2, n_embd=12, block_size=5, vocab_size=9)


@pytest.fixture
def model(ops):
    return GPT(CONFIG, dtype="float64", backend=ops.__name__.removeprefix("npllm."))


def add_gradient(model, seed):
    tokens, targets = np.random.default_rng(seed).integers(0, CONFIG.vocab_size, (2, 3, 5))
    model.loss_and_grad(tokens, targets)


def copies(parameters):
    return {name: array.copy() for name, array in parameters.items()}


def clipped(gradients, longest):
    """The gradients, scaled so that their norm is at most `longest`."""
    norm = np.sqrt(sum(np.sum(g * g) for g in gradients.values()))
    return {name: g * min(1.0, longest / norm) for name, g in gradients.items()}


class PlainAdam:
    """Kingma & Ba, algorithm 1; with `decoupled`, Loshchilov & Hutter, algorithm 2."""

    def __init__(self, params, decoupled):
        self.m = {name: np.zeros_like(p) for name, p in params.items()}
        self.v = {name: np.zeros_like(p) for name, p in params.items()}
        self.decoupled = decoupled

    def update(self, params, gradients, t, rate, weight_decay):
        for name, p in params.items():
            decay, lr = weight_decay if p.ndim == 2 else 0.0, rate * SCALES.get(name, 1.0)
            g = gradients[name] if self.decoupled else gradients[name] + decay * p
            self.m[name] = 0.8 * self.m[name] + 0.2 * g
            self.v[name] = 0.9 * self.v[name] + 0.1 * g * g
            direction = (self.m[name] / (1 - 0.8**t)) / (np.sqrt(self.v[name] / (1 - 0.9**t)) + 1e-4)
            params[name] = p - lr * direction - (lr * decay * p if self.decoupled else 0.0)

    @property
    def state(self):
        return {"adam_m": self.m, "adam_v": self.v}


class PlainMuon(PlainAdam):
    """Jordan et al.: the singular values pass through the polynomial, five times."""

    def __init__(self, params):
        super().__init__(params, decoupled=True)

    def update(self, params, gradients, t, rate, weight_decay):
        whole = {name for name, p in params.items() if name.startswith("blocks.") and p.ndim == 2}
        before, momenta = {name: params[name] for name in whole}, {name: self.m[name] for name in whole}
        super().update(params, gradients, t, rate, weight_decay)
        for name, p in before.items():
            lr, g = 5.0 * rate * SCALES.get(name, 1.0), gradients[name]
            self.m[name], self.v[name] = 0.6 * momenta[name] + 0.4 * g, np.zeros_like(p)
            u = 0.6 * self.m[name] + 0.4 * g
            parts = np.split(u, 3, axis=1) if "qkv" in name else [u]
            direction = np.concatenate([self.direction(part) for part in parts], axis=1)
            params[name] = p - lr * weight_decay * p - lr * direction

    @staticmethod
    def direction(u):
        left, s, right = np.linalg.svd(u, full_matrices=False)
        s /= np.sqrt((s * s).sum())
        for _ in range(5):
            s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
        return max(1.0, u.shape[1] / u.shape[0]) ** 0.5 * (left * s) @ right


class PlainSGD:
    """SGD with heavy-ball momentum."""

    def __init__(self, params):
        self.velocity = {name: np.zeros_like(p) for name, p in params.items()}

    def update(self, params, gradients, t, rate, weight_decay):
        for name, p in params.items():
            decay, lr = weight_decay if p.ndim == 2 else 0.0, rate * SCALES.get(name, 1.0)
            self.velocity[name] = 0.8 * self.velocity[name] + gradients[name] + decay * p
            params[name] = p - lr * self.velocity[name]

    @property
    def state(self):
        return {"velocity": self.velocity}


SCALES = {"token_embedding": 0.25, "blocks.0.mlp.up.weight": 2.0, "final_norm.bias": 0.5}
RULES = {
    "adamw": (
        lambda model, **how: AdamW(model, lr=0.01, betas=(0.8, 0.9), eps=1e-4, weight_decay=0.5, **how),
        lambda params: PlainAdam(params, decoupled=True),
    ),
    "adam": (
        lambda model, **how: Adam(model, lr=0.01, betas=(0.8, 0.9), eps=1e-4, weight_decay=0.5, **how),
        lambda params: PlainAdam(params, decoupled=False),
    ),
    "muon": (
        lambda model, **how: Muon(
            model, lr=0.01, matrix_lr=0.05, momentum=0.6, betas=(0.8, 0.9), eps=1e-4, weight_decay=0.5, **how
        ),
        PlainMuon,
    ),
    "sgd": (lambda model, **how: SGD(model, lr=0.01, momentum=0.8, weight_decay=0.5, **how), PlainSGD),
}


@pytest.mark.parametrize("rule", RULES)
def test_five_updates_follow_the_published_algorithm(model, rule):
    """Weight decay is on matrices only. One update has its own learning rate, some are
    clipped, and some parameters have a part of the learning rate."""
    make, make_plain = RULES[rule]
    optimizer, params = make(model, lr_scales=SCALES), copies(model.params)
    plain = make_plain(params)
    norms = []
    for update, (grad_clip, lr) in enumerate([(0.0, 0.01), (0.2, 0.01), (1e9, 0.03), (0.2, 0.01), (0.0, 0.01)]):
        add_gradient(model, seed=update)
        gradients = copies(model.grads)
        norm = optimizer.step(grad_clip=grad_clip, lr=None if lr == optimizer.lr else lr)
        norms.append(norm)
        assert norm == pytest.approx(np.sqrt(sum(np.sum(g * g) for g in gradients.values())), rel=1e-13)
        plain.update(params, clipped(gradients, grad_clip or np.inf), update + 1, lr, weight_decay=0.5)
        for name, p in params.items():
            np.testing.assert_allclose(model.params[name], p, rtol=1e-11, atol=1e-13, err_msg=name)
        assert not model.grads.flat.any()
    assert min(norms) > 0.4, "the clipping at 0.2 must have been active"
    assert optimizer.updates == 5
    assert optimizer.state.keys() == plain.state.keys()
    for state_name, by_name in plain.state.items():
        for name, expected in by_name.items():
            start = model.params.offsets[name]
            found = optimizer.state[state_name][start : start + expected.size].reshape(expected.shape)
            np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-15, err_msg=f"{state_name} of {name}")


@pytest.mark.parametrize("rule", RULES)
def test_a_parameter_without_gradient_stays(model, rule):
    """No sequence reaches some positions. For them Adam divides 0 by eps."""
    optimizer = RULES[rule][0](model)
    optimizer.weight_decay = 0.0
    table = model.params["position_embedding"]
    before = table.copy()
    for _ in range(2):
        model.loss_and_grad([[1, 2]], [[2, 3]])
        optimizer.step()
    assert np.all(table[:2] != before[:2])
    np.testing.assert_array_equal(table[2:], before[2:])


def test_vectors_do_not_decay(model):
    optimizer = AdamW(model, lr=0.1, weight_decay=0.5)
    before = copies(model.params)
    optimizer.step()  # of a zero gradient
    for name, p in model.params.items():
        expected = before[name] * (0.95 if p.ndim == 2 else 1.0)
        np.testing.assert_allclose(p, expected, rtol=1e-14, err_msg=name)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(model, rule, bad):
    optimizer = RULES[rule][0](model)
    add_gradient(model, seed=0)
    optimizer.step()
    add_gradient(model, seed=1)
    model.grads["blocks.0.mlp.up.bias"][3] = bad
    flats = (model.params.flat, model.grads.flat, *optimizer.state.values())
    before = [flat.tobytes() for flat in flats]
    with pytest.raises(TrainingError, match="gradient of update 2 is not finite"):
        optimizer.step(grad_clip=1.0)
    assert [flat.tobytes() for flat in flats] == before
    assert optimizer.updates == 1


def test_a_gradient_as_long_as_the_limit_is_not_clipped(model):
    """Only longer gradients are clipped, and clipping keeps the direction. SGD shows
    it: its update is the learning rate times the gradient."""
    optimizer = SGD(model, lr=1.0, momentum=0.0)
    add_gradient(model, seed=0)
    gradient = model.grads.flat.copy()
    norm = model.ops.gradient_norm(model.grads.flat)
    for grad_clip, scale in ((norm, 1.0), (0.5 * norm, 0.5), (0.0, 1.0)):
        model.grads.flat[:] = gradient
        before = model.params.flat.copy()
        assert optimizer.step(grad_clip=grad_clip) == norm
        np.testing.assert_allclose(model.params.flat, before - scale * gradient, rtol=1e-13, atol=1e-15)


def test_a_norm_that_is_known_is_not_computed_again(model, monkeypatch):
    """The given norm is used for clipping. Computing it again would take a noticeable
    part of an update."""
    optimizer = SGD(model, lr=1.0, momentum=0.0)
    model.grads.flat[:] = 1.0
    before = model.params.flat.copy()
    monkeypatch.setattr(optimizer, "gradient_norm", None)
    assert optimizer.step(grad_clip=2.0, norm=8.0) == 8.0
    np.testing.assert_allclose(model.params.flat, before - 0.25, rtol=1e-14)


def test_the_given_learning_rate_is_for_one_update(model):
    optimizer = SGD(model, lr=0.5, momentum=0.0)
    for lr, used in ((2.0, 2.0), (None, 0.5), (0.0, 0.0)):
        model.grads.flat[:] = 1.0
        before = model.params.flat.copy()
        optimizer.step(lr=lr)
        np.testing.assert_allclose(model.params.flat, before - used, rtol=1e-14)
    assert optimizer.lr == 0.5


def test_state_is_aligned_and_zero(model):
    for optimizer in (AdamW(model), SGD(model)):
        for array in optimizer.state.values():
            assert array.shape == model.params.flat.shape
            assert array.dtype == model.params.dtype
            assert array.ctypes.data % 64 == 0
            assert not array.any()


def test_a_config_names_the_rule(model):
    options = {"lr": 0.02, "min_lr": 0.0, "beta1": 0.7, "beta2": 0.9, "eps": 1e-6, "weight_decay": 0.3}
    adamw, adam, sgd = (build_optimizer(model, OptimConfig(name=name, **options)) for name in ("adamw", "adam", "sgd"))
    muon = build_optimizer(model, OptimConfig(name="muon", matrix_lr=0.06, **options))
    assert (type(adamw), type(adam), type(sgd), type(muon)) == (AdamW, Adam, SGD, Muon)
    assert (adamw.decoupled, adam.decoupled) == (True, False)
    assert muon.matrix_scale == pytest.approx(3.0)
    for optimizer in (adamw, adam, sgd, muon):
        assert (optimizer.lr, optimizer.weight_decay) == (0.02, 0.3)
    for optimizer in (adamw, adam, muon):
        assert (optimizer.betas, optimizer.eps) == ((0.7, 0.9), 1e-6)
    assert sgd.momentum == 0.7
    frozen = dict.fromkeys(model.params, 0.0)
    before = model.params.flat.copy()
    for name in ("adamw", "adam", "muon", "sgd"):
        add_gradient(model, seed=0)
        build_optimizer(model, OptimConfig(name=name, **options), frozen).step()
    np.testing.assert_array_equal(model.params.flat, before)
