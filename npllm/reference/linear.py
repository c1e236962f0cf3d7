r"""Linear layer: $y = x W + b$, optionally followed by GELU or by adding a residual.

Forward, with rows n, inputs i, outputs o:

$$
z_{n,o} = \sum_i x_{n,i} W_{i,o} + b_o
y = z                                     % or $gelu(z)$, or $residual + z$
$$

Backward. Let dz be the gradient of z. Every $z_{n,o}$ contains $x_{n,i}$ once,
multiplied by $W_{i,o}$, so by the chain rule

$$
dx_{n,i} = \sum_o dz_{n,o} W_{i,o}        % that is $dx = dz W^T$
dW_{i,o} = \sum_n x_{n,i} dz_{n,o}        % that is $dW = x^T dz$
db_o = \sum_n dz_{n,o}                    % dz summed over the rows
$$

The shapes allow nothing else: (N, in) can only come from (N, out) and (out, in).

Epilogues. For "gelu", $dz = dy \cdot gelu'(z)$. For "residual", $dz = dy$, which is
also the residual's gradient; the caller already has it. Epilogues are part of this
operation because a fast kernel applies them to a tile of z while the tile is still in
registers. Here they are plain compositions.

The backward needs x, for dW, which the caller has. With "gelu" it also needs z, which
the forward returns: $gelu'$ is a function of z, and z cannot be computed from y,
because GELU is not monotonic.

Source: Rumelhart, Hinton & Williams, "Learning representations by back-propagating
errors", 1986.
"""

from npllm.reference.gelu import gelu_backward, gelu_forward


def linear_forward(x, weight, bias=None, *, epilogue="none", residual=None):
    """Multiply rows by a matrix.

    x: (N, in). weight: (in, out). bias: (out,) or None. epilogue: "none", "gelu" or
    "residual"; the last one adds `residual`, (N, out). All arrays have one float dtype.
    Returns y, (N, out), and, with "gelu", z, (N, out), else None.
    """
    z = x @ weight
    if bias is not None:
        z += bias
    if epilogue == "gelu":
        return gelu_forward(z), z
    if epilogue == "residual":
        z += residual
    return z, None


def linear_backward(dy, x, weight, dweight, dbias=None, *, pre_activation=None):
    """Return dx, (N, in), the gradient of `linear_forward`.

    dy: (N, out). x: (N, in), as given to the forward. pre_activation: z, (N, out),
    where the epilogue was "gelu". Adds to dweight, (in, out), and to dbias, (out,),
    unless it is None.
    """
    dz = dy if pre_activation is None else gelu_backward(dy, pre_activation)
    dweight += x.T @ dz
    if dbias is not None:
        dbias += dz.sum(axis=0)
    return dz @ weight.T
