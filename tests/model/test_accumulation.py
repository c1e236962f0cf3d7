"""A batch has the same gradient for any division into micro-batches."""

import numpy as np
import pytest
from model_cases import check_split, every_architecture, gradients_of, random_batch, small_config

from npllm.model import GPT


@every_architecture
@pytest.mark.parametrize("sizes", [(8,), (1,) * 8, (2,) * 4, (4, 4), (5, 3), (3, 5)], ids=str)
def test_micro_batches_add_up_to_the_batch(backend, sizes, architecture):
    check_split(backend, sizes, **architecture)


def test_a_new_gradient_is_added_to_the_old_one(backend):
    config = small_config()
    model = GPT(config, dtype="float64", backend=backend)
    batch = random_batch(config, B=3, T=5)
    _, once = gradients_of(model, batch)
    model.loss_and_grad(*batch)
    for name, gradient in once.items():
        np.testing.assert_allclose(model.grads[name], 2 * gradient, rtol=1e-12, atol=1e-15, err_msg=name)
