"""Stochastic gradient descent with momentum: a heavy ball that rolls down the loss.

    u = momentum u + g + weight_decay p            velocity
    p = p - lr u

Source: Polyak, "Some methods of speeding up the convergence of iteration methods", 1964; Sutskever et al., "On the
importance of initialization and momentum in deep learning", 2013.
"""


def sgd_update(params, grads, velocity, *, lr, momentum, weight_decay, grad_scale=1.0):
    """One update, in place, of flat arrays of one dtype. grad_scale: the clipping factor. Sets grads to zero."""
    velocity *= momentum
    velocity += grads * grad_scale + weight_decay * params
    params -= lr * velocity
    grads[...] = 0.0
