"""The exercises of the book: one line of code is changed; which test fails, and why?

`before` stands once in the chapter's file. A test applies each change and sees that
the named test fails, so the answers are true.
"""

from typing import NamedTuple

OPS = "tests/reference/test_gradients_of_ops.py"
LAYERS = "tests/reference/test_laws_of_layers.py"
UPDATES = "tests/reference/test_known_optimizer_steps.py"
LOSSES = "tests/rlhf/test_rlhf_losses.py"
NETWORK = "tests/reference/test_plain_transformer.py"
BPE = "tests/tokenizer/test_bpe_training.py"


class Exercise(NamedTuple):
    """A change of one line.

    question, answer: Markdown with formulas. before, after: code. test: FILE::FUNCTION,
    which fails after the change.
    """

    question: str
    before: str
    after: str
    test: str
    answer: str


EXERCISES: dict[str, tuple[Exercise, ...]] = {
    "reference/linear.py": (
        Exercise(
            "Let the gradient of the weight replace what was there.",
            "dweight += x.T @ dz",
            "dweight[...] = x.T @ dz",
            f"{OPS}::test_linear",
            "The check starts each parameter's gradient from random numbers and looks at "
            "what was *added*. A check that starts from zeros would accept the change. "
            "Training with micro-batches would then use the last one only, and a tied "
            "head would lose the gradient of the embedding.",
        ),
        Exercise(
            "Forget the derivative of the epilogue.",
            "dz = dy if pre_activation is None else gelu_backward(dy, pre_activation)",
            "dz = dy",
            f"{OPS}::test_linear",
            "Of the three epilogues only GELU notices: for the others $dz = dy$ is right. "
            "So the test has to run with each of them. Such a network still learns, "
            "because the derivative of GELU is near 1 where its input is large.",
        ),
        Exercise(
            "Forget the bias.",
            "dbias += dz.sum(axis=0)",
            "dbias += dz[0]",
            f"{OPS}::test_linear",
            "With a single row both are the same. The bias was added to *every* row, so "
            "its gradient is the sum over all of them. Random shapes find the difference "
            "as soon as there are two rows.",
        ),
    ),
    "reference/gelu.py": (
        Exercise(
            "Differentiate the cube wrongly.",
            "1.0 + 3.0 * CUBIC * x * x",
            "1.0 + CUBIC * x * x",
            f"{OPS}::test_gelu",
            "The mistake is small: $a = 0.044715$, so near 0 the derivative is right to a "
            "few thousandths. Training would not show it. A tolerance of $10^{-6}$ does.",
        ),
        Exercise(
            "Drop the second term of the product rule.",
            "0.5 * (1.0 + tanh_u) + 0.5 * x * (1.0 - tanh_u**2) * du_dx",
            "0.5 * (1.0 + tanh_u)",
            f"{OPS}::test_gelu",
            "What is left is the probability that GELU multiplies x by, as if it did not "
            "depend on x. For large $|x|$ it does not, and there the gradient is right.",
        ),
    ),
    "reference/relu2.py": (
        Exercise(
            "Use the derivative of ReLU.",
            "dy * (2.0 * np.maximum(x, 0.0))",
            "dy * (x > 0.0)",
            f"{OPS}::test_relu2",
            "The sign of every element is still right, so the loss would fall. The size is right only where $2 x = 1$.",
        ),
    ),
    "reference/swiglu.py": (
        Exercise(
            "Treat the logistic function as a constant.",
            "dy * up * sigma * (1.0 + gate * (1.0 - sigma))",
            "dy * up * sigma",
            f"{OPS}::test_swiglu",
            "The gate acts on y twice: as a factor and inside $\\sigma$. The term that is "
            "missing is the second way. It vanishes where the gate is far from 0, because "
            "$\\sigma$ is flat there.",
        ),
    ),
    "reference/layernorm.py": (
        Exercise(
            "Forget that the mean depends on x.",
            "(g - along_ones - x_hat * along_x_hat)",
            "(g - x_hat * along_x_hat)",
            f"{LAYERS}::test_the_gradient_of_a_norm_has_no_part_along_what_the_norm_cannot_see",
            "Adding a constant to a row does not change y, so the gradient of the row must "
            "sum to zero. It no longer does. `test_layernorm` fails as well; this law "
            "needs no differences to see it.",
        ),
        Exercise(
            "Forget that the standard deviation depends on x.",
            "(g - along_ones - x_hat * along_x_hat)",
            "(g - along_ones)",
            f"{OPS}::test_layernorm",
            "Scaling a row does not change y either. The part of the gradient along "
            "$x_hat$ has to go, and now it stays.",
        ),
        Exercise(
            "Take the wrong axis for the gradient of the weight.",
            "dweight += (dy * x_hat).sum(axis=0)",
            "dweight += (dy * x_hat).sum(axis=1)[0]",
            f"{OPS}::test_layernorm",
            "The weight is used by every row, so its gradient is a sum over rows. A sum "
            "over the width gives one number a row.",
        ),
    ),
    "reference/rmsnorm.py": (
        Exercise(
            "Forget the division by the width.",
            "(g * x_hat).mean(axis=1, keepdims=True)",
            "(g * x_hat).sum(axis=1, keepdims=True)",
            f"{OPS}::test_rmsnorm",
            "For a width of 1 both are the same. The tests use widths from 3 on.",
        ),
        Exercise(
            "Leave the weight out of g.",
            "g = dy * weight",
            "g = dy",
            f"{OPS}::test_rmsnorm",
            "At the start of training every weight is 1, and nothing would be wrong. The "
            "test has random weights for this reason.",
        ),
    ),
    "reference/embedding.py": (
        Exercise(
            "Let NumPy's indexing add the gradients.",
            "np.add.at(dtoken_embedding, cache.tokens, dy)",
            "dtoken_embedding[cache.tokens] += dy",
            f"{OPS}::test_token_embedding",
            "It is right as long as every token occurs once. Where one occurs twice, the "
            "second addition overwrites the first. The test draws from few tokens, so "
            "that they repeat.",
        ),
    ),
    "reference/attention.py": (
        Exercise(
            "Drop the sum in the softmax's derivative.",
            "(dprobabilities - (probabilities * dprobabilities).sum(axis=-1, keepdims=True))",
            "dprobabilities",
            f"{OPS}::test_attention",
            "The sum holds what a probability takes from the others when it grows. "
            "Without it the gradient of a row of scores no longer sums to zero, though a "
            "constant added to all scores changes nothing.",
        ),
        Exercise(
            "Multiply by the weights before dropout.",
            "dv = (weights.swapaxes(-1, -2) @ dy)",
            "dv = (probabilities.swapaxes(-1, -2) @ dy)",
            f"{OPS}::test_attention",
            "Without dropout both are the same array. A gradient check that switches "
            "dropout off, as many do, accepts it. The forward multiplied v by the weights "
            "*after* dropout, so the backward must too.",
        ),
        Exercise(
            "Forget one scale.",
            "dk = (dscores.swapaxes(-1, -2) @ q).sum(axis=2) * scale",
            "dk = (dscores.swapaxes(-1, -2) @ q).sum(axis=2)",
            f"{OPS}::test_attention",
            "The gradient of the keys is $\\sqrt{D}$ times too long, in the right "
            "direction. Adam divides a gradient by its size and would hide it. For "
            "$D = 1$ it is right, so the test draws other widths.",
        ),
    ),
    "reference/qk_norm.py": (
        Exercise(
            "Take the gradient of one head for the shared weight.",
            "dq_weight += dweights[:n_head].sum(axis=0)",
            "dq_weight += dweights[0]",
            f"{OPS}::test_qk_norm",
            "All query heads share one weight, so its gradient is a sum over heads. With one head nothing is wrong.",
        ),
    ),
    "reference/rotary.py": (
        Exercise(
            "Rotate the gradient forward.",
            "rotary_forward(dy, cos, -sin, n_head, n_kv_head)",
            "rotary_forward(dy, cos, sin, n_head, n_kv_head)",
            f"{OPS}::test_rotary",
            "The transpose of a rotation is the rotation by the opposite angle. At "
            "position 0 the angle is 0 and both agree; the lengths are right everywhere.",
        ),
    ),
    "reference/dropout.py": (
        Exercise(
            "Let the whole gradient pass.",
            "return dropout_forward(dy, rate, key)",
            "return dy",
            f"{OPS}::test_dropout",
            "The gradient then flows through elements that were dropped. Its mean is the "
            "same, and only a check with the mask of the forward sees it.",
        ),
    ),
    "reference/add_norm.py": (
        Exercise(
            "Block the way past the branch.",
            "return dtotal + layernorm_backward(dy, cache, weight, dweight, dbias)",
            "return layernorm_backward(dy, cache, weight, dweight, dbias)",
            f"{OPS}::test_add_norm",
            "`total` is used twice, and one of its two gradients is lost. In a deep "
            "network this is the one that reaches the first blocks unchanged.",
        ),
    ),
    "reference/lm_head_loss.py": (
        Exercise(
            "Drop the target.",
            "dlogits[rows, targets[rows]] -= 1.0",
            "pass",
            f"{OPS}::test_lm_head_loss",
            "What is left is the prediction alone: the gradient pushes every logit down. "
            "A row of dz sums to 1 instead of 0, which "
            "`test_probability_taken_from_one_token_is_given_to_others` sees too.",
        ),
        Exercise(
            "Give ignored rows a gradient.",
            "np.where(targets == IGNORED, x.dtype.type(0), dnll)[:, None]",
            "dnll[:, None]",
            f"{OPS}::test_lm_head_loss",
            "About a third of the targets of the test are ignored. The loss of such a row "
            "is 0 whatever the logits are, so its gradient is 0.",
        ),
    ),
    "reference/lm_head_policy.py": (
        Exercise(
            "Leave the entropy out of its own gradient.",
            "dentropy[:, None] * (log_p + entropy[:, None])",
            "dentropy[:, None] * log_p",
            f"{OPS}::test_lm_head_policy",
            "A token is pushed down if its surprise is below the *mean* surprise, which is "
            "the entropy. Without it every token is measured against 0, and the row of dz "
            "no longer sums to zero.",
        ),
    ),
    "reference/adam.py": (
        Exercise(
            "Drop the correction for the start at zero.",
            "m_hat = m * (1.0 / (1.0 - beta1**step))",
            "m_hat = m",
            f"{UPDATES}::test_two_adam_steps_by_hand",
            "The first update is then $1 - \\beta_1$ of its length, a tenth. After some "
            "dozens of updates there is no difference, so only a test of the first ones "
            "can see it.",
        ),
        Exercise(
            "Put eps into the root.",
            "(np.sqrt(v_hat) + eps)",
            "np.sqrt(v_hat + eps)",
            f"{UPDATES}::test_eps_stands_outside_the_root",
            "For gradients far above $\\sqrt{eps}$ both are the same. A parameter with tiny "
            "gradients moves by much less if eps stands in the root.",
        ),
    ),
    "reference/muon.py": (
        Exercise(
            "Forget the factor of a widening matrix.",
            "rate * max(1.0, width / n_in) ** 0.5 * orthogonal",
            "rate * orthogonal",
            f"{UPDATES}::test_muon_makes_singular_values_nearly_equal_and_keeps_their_vectors",
            "The factor is 1 for a square matrix and for one that narrows its input. Of "
            "the shapes of the test only (4, 9) and (1, 5) see it.",
        ),
    ),
    "reference/sgd.py": (
        Exercise(
            "Let the velocity forget.",
            "velocity *= momentum",
            "velocity *= 0.0",
            f"{UPDATES}::test_two_sgd_steps_by_hand",
            "The first update starts from a velocity of 0 and is right. The second one is "
            "not, which is why the test takes two.",
        ),
    ),
    "reference/gradient_norm.py": (
        Exercise(
            "Sum the squares in the dtype of the gradient.",
            "grads[start : start + CHUNK].astype(np.float64)",
            "grads[start : start + CHUNK]",
            f"{UPDATES}::test_gradient_norm_does_not_overflow_in_float32",
            "The square of $10^{20}$ is above the largest float32. The norm would be "
            "infinite, and the clipped gradient zero.",
        ),
    ),
    "reference/block.py": (
        Exercise(
            "Block the way past attention.",
            'return dmid + norm_backward(config, p, dp, f"{name}.norm_1", dnormed, cache.norm_1)',
            'return norm_backward(config, p, dp, f"{name}.norm_1", dnormed, cache.norm_1)',
            f"{NETWORK}::test_gradient_of_every_parameter",
            "The gradients of this block's weights stay right. Those of everything below "
            "it are wrong, down to the tables of the embedding.",
        ),
    ),
    "reference/transformer.py": (
        Exercise(
            "Start the gradients of the blocks from the first one.",
            "for layer in reversed(range(config.n_layer)):",
            "for layer in range(config.n_layer):",
            f"{NETWORK}::test_gradient_of_every_parameter",
            "With one layer both orders are the same. The networks of the test have two.",
        ),
    ),
    "rlhf/losses.py": (
        Exercise(
            "Turn the gradient of the reward model round.",
            "dz = -sigmoid(-z) / n_pairs",
            "dz = sigmoid(-z) / n_pairs",
            f"{LOSSES}::test_gradient_of_bradley_terry",
            "The model would learn to prefer the rejected responses.",
        ),
        Exercise(
            "Let clipped tokens have a gradient.",
            "gradient = np.where(clipped, 0.0, unclipped) / n_tokens",
            "gradient = unclipped / n_tokens",
            f"{LOSSES}::test_gradient_of_the_clipped_policy_loss",
            "The loss is constant where the clip holds. Without the zero, the policy moves "
            "on in the direction that the clip was made to stop.",
        ),
    ),
    "tokenizer/naive_bpe.py": (
        Exercise(
            "Break ties by the first pair that was found.",
            "key=lambda pair: (counts[pair], tokens[pair[0]], tokens[pair[1]])",
            "key=lambda pair: counts[pair]",
            f"{BPE}::test_the_example_of_the_naive_docstring",
            "In the example (l, o) and (o, w) occur equally often. Every merge after a tie "
            "depends on which of them comes first, so the rule belongs to the definition.",
        ),
    ),
}
