"""The benchmarks time nothing that is wrong: each of their checks can fail."""

import numpy as np
import pytest

import npllm.kernels
from benchmarks import gemm, generate, kernels, tokenizer, train
from benchmarks.cases import operation_cases
from benchmarks.checks import check_close
from benchmarks.configs import TINY
from benchmarks.ladder import climb, gelu


def contender(tolerance=1e-4, mode="float32"):
    return train.Contender("peer", "torch_worker", {"mode": mode}, tolerance)


def test_results_must_be_close():
    right = np.array([1.0, -200.0])
    check_close("it", (right + 0.01,), (right,), tolerance=1e-4)
    with pytest.raises(SystemExit, match="it differs"):
        check_close("it", (right + 0.03,), (right,), tolerance=1e-4)
    with pytest.raises(SystemExit, match="it differs"):
        check_close("it", (right * np.nan,), (right,), tolerance=1e-4)


@pytest.mark.parametrize("quantity", ["loss", "grad_norm", "second_loss"])
@pytest.mark.parametrize("factor", [1.0003, np.nan])
def test_training_must_be_the_same(quantity, factor):
    ours = {"loss": 4.0, "grad_norm": 2.0, "second_loss": 3.0}
    theirs = ours | {quantity: factor * ours[quantity]}
    train.check_same_training(contender(tolerance=1e-3), ours, ours)
    with pytest.raises(SystemExit, match=f"peer has {quantity}"):
        train.check_same_training(contender(tolerance=1e-4), theirs, ours)


def test_texts_must_be_the_same_and_rounded_weights_must_begin_alike():
    ours, later, at_once = {"tokens": [1, 2, 3]}, {"tokens": [1, 2, 4]}, {"tokens": [2, 2, 3]}
    generate.check_same_text(contender(), ours, ours)
    generate.check_same_text(contender(mode="bfloat16"), later, ours)
    for wrong, mode in ((later, "float32"), (at_once, "bfloat16")):
        with pytest.raises(SystemExit, match="peer generates"):
            generate.check_same_text(contender(mode=mode), wrong, ours)


def test_ids_must_be_the_same_and_vocabularies_equally_good():
    ours = {"sha256": "a", "n_tokens": 1000, "vocab_size": 512}
    tokenizer.check_same_ids(contender(), ours, ours)
    with pytest.raises(SystemExit, match="other ids"):
        tokenizer.check_same_ids(contender(), ours | {"sha256": "b"}, ours)
    tokenizer.check_same_compression(contender(tolerance=0.01), ours | {"n_tokens": 1009}, ours)
    for change in ({"n_tokens": 1011}, {"vocab_size": 511}):
        with pytest.raises(SystemExit, match="another vocabulary"):
            tokenizer.check_same_compression(contender(tolerance=0.01), ours | change, ours)


def slightly_wrong(function):
    return lambda *args, **kwargs: function(*args, **kwargs) * np.float32(1.01)


def test_a_wrong_kernel_stops_the_benchmark_of_kernels(monkeypatch):
    (case,) = (case for case in operation_cases(np.dtype("float32")) if case.name == "GELU")
    monkeypatch.setattr(npllm.kernels, "gelu_backward", slightly_wrong(npllm.kernels.gelu_backward))
    with pytest.raises(SystemExit, match="GELU differs"):
        kernels.measure_case(case, "float32", rounds=1, peak=1e9)


def test_a_wrong_product_stops_the_benchmark_of_products(monkeypatch):
    monkeypatch.setattr(gemm, "matmul", slightly_wrong(gemm.matmul))
    with pytest.raises(SystemExit, match=r"\(256, 16\) @ \(16, 48\) differs"):
        gemm.measure({"tiny": TINY}, rounds=1)


def test_a_wrong_kernel_stops_the_ladder(monkeypatch):
    monkeypatch.setattr(npllm.kernels, "gelu_forward", slightly_wrong(npllm.kernels.gelu_forward))
    with pytest.raises(SystemExit, match="GELU, npllm kernel differs"):
        climb.climb(gelu.task(4, 8), gelu.task(2, 4), rounds=1)
