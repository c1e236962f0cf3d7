r"""Adam and AdamW: step along the gradient's running mean, divided by its running RMS.

With g the clipped gradient and $t = 1, 2, \dots$ the number of this update:

$$
m = \beta_1 m + (1 - \beta_1) g           % mean of the gradient
v = \beta_2 v + (1 - \beta_2) g^2         % mean of its square
m_hat = m / (1 - \beta_1^t)
v_hat = v / (1 - \beta_2^t)
p = p - lr m_hat / (\sqrt{v_hat} + eps)
$$

$m_hat$ and $v_hat$ correct for the start at zero: after t updates the weights of the
running mean add up to $1 - \beta^t$, not to 1.

Weight decay. In Adam it is part of the gradient, $g + weight_decay p$, so it is divided
by $\sqrt{v_hat}$ too, and weights with large gradients hardly decay. AdamW decouples
it: p shrinks by $lr weight_decay p$, every weight at the same rate.

Sources: Kingma & Ba, "Adam", 2014, algorithm 1; Loshchilov & Hutter, "Decoupled weight
decay regularization", 2017, algorithm 2.
"""

import numpy as np


def adam_update(params, grads, m, v, *, lr, beta1, beta2, eps, weight_decay, decoupled, step, grad_scale=1.0):
    """Update flat arrays of one dtype and length in place.

    step: t, from 1. grad_scale: the clipping factor, multiplied into the gradients.
    decoupled: AdamW. Sets grads to zero, ready for the next step to add to.
    """
    g = grads * grad_scale
    if decoupled:
        params *= 1.0 - lr * weight_decay
    else:
        g += weight_decay * params
    m *= beta1
    m += (1.0 - beta1) * g
    v *= beta2
    v += (1.0 - beta2) * g**2
    m_hat = m * (1.0 / (1.0 - beta1**step))
    v_hat = v * (1.0 / (1.0 - beta2**step))
    params -= lr * m_hat / (np.sqrt(v_hat) + eps)
    grads[...] = 0.0
