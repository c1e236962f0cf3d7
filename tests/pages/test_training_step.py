"""The numbers of the microscope: each against a second way to get it."""

import math

import numpy as np
import pytest
from microscope_cases import EVERY, small_subject

import npllm
from npllm.model.inspection import float64_copy
from npllm.pages.backward_lens import WORDS, backward_lens
from npllm.pages.differences import ENTRIES, largest_errors
from npllm.pages.kernel_times import profile_step
from npllm.pages.training_step import make_step, sent_back

every_architecture = pytest.mark.parametrize("fields", EVERY.values(), ids=EVERY.keys())
# Initial weights have small gradients, which the differences resolve to about 1e-7. At
# a few entries of a ReLU² its second derivative jumps.
TOLERANCE = 1e-4


@every_architecture
def test_every_tensor_agrees_with_differences(fields):
    subject = small_subject(text="a cat sat", **fields)
    inside = npllm.inspect(subject.model, subject.tokens)
    errors, entries = largest_errors(subject.model, inside)
    assert entries == ENTRIES
    assert errors.keys() == inside.gradients.keys() - {"loss"}
    assert max(errors.values()) < TOLERANCE


@pytest.mark.parametrize("name", ["blocks.0.mlp.up", "blocks.0.mid", "final_norm.weight", "embedding"])
def test_a_wrong_gradient_has_a_large_error(name):
    """Fails if the differences look at other entries, or at another tensor."""
    subject = small_subject(text="a cat", **EVERY["gpt2"], n_layer=1)
    inside = npllm.inspect(subject.model, subject.tokens)
    inside.gradients[name] *= 1.01
    wrong = "blocks.0.attention.out" if name.endswith("mid") else name  # they share one gradient
    if wrong != name:
        inside.gradients[wrong] *= 1.01
    errors, _ = largest_errors(subject.model, inside)
    assert {each for each, error in errors.items() if error > 5e-3} == {name, wrong}


def test_measuring_changes_no_weight_and_tells_of_every_tensor():
    subject, lines = small_subject(text="a cat", **EVERY["gpt2"], n_layer=1), []
    before = subject.model.params.flat.copy()
    errors, _ = largest_errors(subject.model, npllm.inspect(subject.model, subject.tokens), lines.append)
    n = len(errors) - 1  # the stream between the branches is not measured again
    assert [line.rpartition(": ")[2] for line in lines] == [f"tensor {i} of {n}" for i in range(1, n + 1)]
    np.testing.assert_array_equal(subject.model.params.flat, before)


def test_one_loss_sends_back_what_the_whole_loss_does_if_it_is_the_only_one():
    subject = small_subject(text="ab", **EVERY["llama"])
    inside = npllm.inspect(subject.model, subject.tokens)
    expected = np.linalg.norm(inside.stream_gradients[:, 0], axis=-1)  # (L+1, T)
    np.testing.assert_allclose(sent_back(subject.model, inside), expected[None], rtol=1e-12)


def test_a_loss_reaches_earlier_positions_only():
    subject = small_subject(**EVERY["llama"])
    norms = sent_back(subject.model, npllm.inspect(subject.model, subject.tokens))
    T = len(subject.ids)
    assert norms.shape == (T - 1, 3, T)
    for t in range(T - 1):
        assert (norms[t, :, t + 1 :] == 0).all()
        assert (norms[t, :-1, : t + 1] > 0).all()
        assert (np.delete(norms[t, -1], t) == 0).all()  # after the last block no position reads another


@every_architecture
def test_the_lens_reads_the_outer_products_of_the_gradient(fields):
    subject = small_subject(**fields)
    inside = npllm.inspect(subject.model, subject.tokens)
    lens = backward_lens(subject.model, inside)
    assert [layer.layer for layer in lens] == [0, 1]
    for layer in lens:
        assert layer.error < 1e-12
        assert sum(reading.share for reading in layer.readings) == pytest.approx(1.0)
        last = layer.readings[-1]
        assert last.share == 0.0  # the last token has no loss, and nobody reads it
    weights = float64_copy(subject.model).weights
    head = weights["lm_head" if "lm_head" in weights else "token_embedding"]
    d = inside.gradients["blocks.1.mlp.down"][0, 3]
    scores = [sum(-row * weights["final_norm.weight"] * d) / math.sqrt(sum(d**2)) for row in head]
    best = sorted(range(len(scores)), key=lambda i: -scores[i])
    reading = lens[1].readings[3]
    assert [i for i, _ in reading.up] == best[:WORDS]
    assert [i for i, _ in reading.down] == best[::-1][:WORDS]
    assert reading.up[0][1] == pytest.approx(scores[best[0]])


def test_the_step_is_one_of_the_optimiser():
    subject, other = small_subject(**EVERY["qwen"]), small_subject(**EVERY["qwen"])
    inside = npllm.inspect(subject.model, subject.tokens)
    step = make_step(subject, inside)
    before = {name: array.copy() for name, array in other.model.params.items()}
    other.model.loss_and_grad(inside.tokens, inside.targets)
    assert step.grad_norm == npllm.AdamW(other.model, lr=1e-2).step(grad_clip=1.0)
    after = npllm.inspect(other.model, subject.tokens).losses[0]
    np.testing.assert_allclose(step.after, after, rtol=1e-12)
    assert step.after.sum() < inside.losses.sum()
    for name, array in other.model.params.items():
        share = np.linalg.norm(array - before[name].astype(float)) / np.linalg.norm(before[name])
        assert step.shares[name] == pytest.approx(share, rel=1e-6), name


@every_architecture
def test_the_profile_holds_every_operation(fields):
    subject = small_subject(**fields)
    model, inside = subject.model, npllm.inspect(subject.model, subject.tokens)
    profile = profile_step(model, 2, 6)
    assert profile.forward.keys() == inside.operations.keys()
    assert profile.backward.keys() == inside.operations.keys() - {"loss"}  # the head is one kernel
    matrices = sum(
        array.size for name, array in inside.gradients.items() if array.ndim == 2 and name.startswith("blocks.")
    )
    head = model.config.vocab_size * model.config.n_embd
    parts = [profile.forward, profile.backward, profile.again]
    flops = sum(timing.flops for part in parts for name, timing in part.items() if not name.endswith(".attention"))
    # A head that computes its logits twice would take 8.
    assert flops == 12 * 6 * (matrices + head)
    assert max(timing.share(profile.limits) for part in parts for timing in part.values() if timing.flops) <= 1.0
    assert [kept.shape for kept in profile.kept["blocks.0.norm_1"]] == [(12, 8)]
    assert "attention.lse" in [kept.name for kept in profile.kept["blocks.1.attention"]]
