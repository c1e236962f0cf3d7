"""Two threads use one model, and each gets what it would get alone.

The threads meet at fixed places in the code, so no result depends on timing.
"""

import threading
from types import SimpleNamespace

import numpy as np
import pytest
from model_cases import patched, random_batch, set_weights_of_order_one, small_config

from npllm.generation import generate_tokens
from npllm.model import GPT

PROMPTS = ([3, 1, 4], [2, 6, 5])


class WatchedLock:
    """A re-entrant lock that sets `somebody_waits` when a thread has to wait for it.

    A test may set the event itself.
    """

    def __init__(self):
        self.lock, self.somebody_waits = threading.RLock(), threading.Event()

    def __enter__(self):
        if not self.lock.acquire(blocking=False):
            self.somebody_waits.set()
            self.lock.acquire()

    def __exit__(self, *_):
        self.lock.release()


def lively_model(**changes) -> GPT:
    model = GPT(small_config(tie_embeddings=False, **changes), dtype="float64")
    set_weights_of_order_one(model, seed=1)
    if model.frozen is not None:
        set_weights_of_order_one(SimpleNamespace(params=model.frozen), seed=2)
    return model


def written(model: GPT, prompt: list[int]) -> list[int]:
    return list(generate_tokens(model, prompt, max_tokens=20, seed=3))


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_a_thread_that_comes_in_the_midst_of_a_pass_waits(monkeypatch, lora_rank):
    """The second thread waits until the first one's pass is over.

    It starts while the first is inside an operation, and runs as far as it can before
    the first continues.
    """
    model = lively_model(lora_rank=lora_rank)
    alone = [written(model, prompt) for prompt in PROMPTS]
    assert alone[0] != alone[1]
    lock, texts, first_stands = WatchedLock(), {}, []
    monkeypatch.setattr(model, "turn", lock, raising=False)

    def second_text():
        try:
            texts[1] = written(model, PROMPTS[1])
        finally:
            lock.somebody_waits.set()  # also if it never had to wait, so that the first thread continues

    def add_norm_forward(*arguments, **options):
        if threading.current_thread() is second:
            assert not first_stands
        elif not second.ident:
            first_stands.append(True)
            second.start()
            lock.somebody_waits.wait()
            first_stands.clear()
        return add_norm(*arguments, **options)

    second = threading.Thread(target=second_text)
    add_norm = model.ops.add_norm_forward
    monkeypatch.setattr(model, "ops", patched(model.ops, add_norm_forward=add_norm_forward))
    texts[0] = written(model, PROMPTS[0])
    second.join()
    assert [texts[0], texts.get(1)] == alone


def test_what_waits_for_the_next_call_is_not_touched():
    """Passes of another thread do not change what a later call still needs.

    They come between a trace and its backward, and while a hidden state is in use.
    """
    model = lively_model(dropout=0.2)
    batch, other = (random_batch(model.config, B=3, T=4, seed=seed) for seed in (0, 1))
    dhidden = np.random.default_rng(2).standard_normal((12, model.config.n_embd))
    hidden, loss = model.hidden(batch.tokens).copy(), model.loss(*other)
    model.backward(model.trace(batch.tokens), dhidden)
    gradient = model.grads.flat.copy()

    losses = []

    def interrupt():
        thread = threading.Thread(target=lambda: losses.append(model.loss(*other)))
        thread.start()
        thread.join()

    model.grads.flat[:] = 0.0
    trace = model.trace(batch.tokens)
    interrupt()
    model.backward(trace, dhidden)
    np.testing.assert_array_equal(model.grads.flat, gradient)
    found = model.hidden(batch.tokens)
    interrupt()
    np.testing.assert_array_equal(found, hidden)
    assert losses == [loss, loss]
