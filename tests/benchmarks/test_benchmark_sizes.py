"""The counts of products, weights, operations and bytes, and the ladder's loops."""

import numpy as np
import pytest

from benchmarks import gemm, generate
from benchmarks.checks import check_close
from benchmarks.configs import CONFIGS, TINY
from benchmarks.ladder import climb, roofline
from benchmarks.ladder.climb import OPERATIONS, own_inputs, place_under_roof, with_kernel, with_loop
from benchmarks.peers.parameter_file import shared_model
from npllm.model import ModelConfig

TINY_MODEL = ModelConfig(n_layer=2, n_head=2, n_embd=4, block_size=8, vocab_size=11)


@pytest.mark.parametrize("transposed", [False, True])
def test_the_products_of_a_layer_are_its_forward_and_its_gradients(transposed):
    products = gemm.products_of(gemm.Layer("layer", 3, 5, transposed), n_rows=7)
    x, weight, y = products["forward"]
    dy, weight_t, dx = products["dx"]
    a, b, dweight = products["dW"]
    assert (x.shape, weight.shape, y.shape, dx.shape) == ((7, 3), (3, 5), (7, 5), (7, 3))
    assert np.shares_memory(weight, weight_t)
    np.testing.assert_array_equal(weight_t, weight.T)
    assert dweight.shape == ((5, 3) if transposed else (3, 5)), "as the weight lies in memory"
    np.testing.assert_allclose(a @ b, dy.T @ x if transposed else x.T @ dy)


def test_layers_are_those_of_the_model():
    layers = {layer.name: (layer.n_in, layer.n_out) for layer in gemm.layers_of(CONFIGS["gpt2"])}
    assert layers == {
        "qkv": (768, 2304), "out": (768, 768), "up": (768, 3072), "down": (3072, 768), "head": (768, 50257),
    }  # fmt: skip


def test_the_work_of_a_step():
    assert TINY.n_tokens == 16 * 16
    weights = 2 * 12 * 16**2 + 512 * 16  # twelve squares a block, and the head
    attention = 2 * 16 * 16  # 2 blocks: 6 for the half of 16 positions, twice, of width 16
    assert TINY.step_flops == 256 * 6 * (weights + attention)


def test_the_weights_of_one_more_token():
    block = 4 * 12 + 12 + 4 * 4 + 4 + 4 * 16 + 16 + 16 * 4 + 4 + 2 * 8  # qkv, out, up, down and two norms
    assert generate.weights_per_token(TINY_MODEL) == 2 * block + 8 + 11 * 4 + 4


def test_all_contenders_get_parameters_that_matter():
    with shared_model(TINY_MODEL) as job:
        flat = np.fromfile(job["parameters"], np.float32)
    for name, (start, shape) in job["layout"].items():
        array = flat[start : start + np.prod(shape)].reshape(shape)
        assert np.ptp(array) > 0.05, f"{name} is nearly constant: a mistake in its use would not show"


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda module: module.__name__.split(".")[-1])
def test_loop_and_kernel_are_right(operation):
    task = operation.task(*operation.SMALL)
    right = task.numpy(*own_inputs(task))
    for name, function in (("loop", with_loop(task.loop, task)), ("kernel", with_kernel(task))):
        check_close(name, function()[: len(right)], right, tolerance=1e-4)


def test_operations_of_the_ladder():
    tasks = {module.__name__.split(".")[-1]: module.task(*module.SMALL) for module in OPERATIONS}
    assert tasks["matmul"].flops == 2 * 32**3
    assert tasks["matmul"].n_bytes == 4 * 3 * 32**2
    assert tasks["cross_entropy"].flops == 3 * 2 * 8 * 32 * 128, "three products"
    assert tasks["attention"].flops == 2 * 2 * 32 * (32 * 33 / 2), "two products of 32 for every pair in the past"


def test_what_limits_an_operation():
    row = {"gflops": 5.0, "flops_per_byte": 0.5, "ns_per_element": None}
    peak, bandwidth = 1e11, 2e10
    assert place_under_roof(row, peak, bandwidth) == {"limit": "memory", "gb_per_s": 10.0, "share": 0.5}
    assert place_under_roof(row | {"flops_per_byte": 6.0}, peak, bandwidth) == {"limit": "arithmetic", "share": 0.05}
    assert place_under_roof(row | {"ns_per_element": 0.3}, peak, bandwidth) == {}


def test_the_roofline_is_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    rows = [
        {"operation": name, "rung": rung, "gflops": gflops, "flops_per_byte": intensity, "ns_per_element": None}
        for name, intensity in (("softmax", 0.6), ("matmul", 100.0))
        for rung, gflops in ((climb.PYTHON, 0.01), (climb.KERNEL, 5.0))
    ]
    roofline.plot(rows, 1e11, 2e10, tmp_path / "roofline.png")
    assert (tmp_path / "roofline.png").read_bytes()[:4] == b"\x89PNG"
