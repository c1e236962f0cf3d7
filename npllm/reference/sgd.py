r"""Gradient descent with momentum: a velocity that collects the gradients and decays.

$$
u = momentum u + g + weight_decay p       % velocity
p = p - lr u
$$

Source: Polyak, "Some methods of speeding up the convergence of iteration methods",
1964; Sutskever et al., "On the importance of initialization and momentum in deep
learning", 2013.
"""


def sgd_update(params, grads, velocity, *, lr, momentum, weight_decay, grad_scale=1.0):
    """Update flat arrays of one dtype and length in place.

    grad_scale: the clipping factor, multiplied into the gradients. Sets grads to zero.
    """
    velocity *= momentum
    velocity += grads * grad_scale + weight_decay * params
    params -= lr * velocity
    grads[...] = 0.0
