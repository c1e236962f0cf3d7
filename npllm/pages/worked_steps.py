"""The numbers of the book's chapters that are no layer: updates, losses, networks, BPE.

They have the form of `worked_examples.py`.
"""

from collections.abc import Callable

import numpy as np

from npllm import reference
from npllm.pages import worked_examples as layers
from npllm.pages.worked_examples import Arrays, Draw, Example, Row, checked
from npllm.reference import lesson
from npllm.reference.differences import largest_error
from npllm.reference.random_streams import EMBEDDING_DROPOUT
from npllm.reference.transformer import loss_and_gradients, mean_loss
from npllm.reference.weights import TransformerConfig, initial_weights, weight_shapes

LESSON_UPDATES = 60


def differences() -> Example:
    x, g = np.array([0.0, 1.0, 2.0]), np.array([1.0, np.e, np.e**2])
    rows = [Row("x", x, g, largest_error(lambda: np.exp(x).sum(), x, g, range(x.size)))]
    text = r"The sum of $\exp x$, whose gradient is $\exp x$ again."
    return Example(text, rows)


def adam() -> Example:
    p, m, v = np.array([1.0, 1.0]), np.zeros(2), np.zeros(2)
    options = {"lr": 0.1, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.5, "decoupled": True}
    rows = [Row("p before", p.copy())]
    for step, gradient in enumerate(([1.0, 0.001], [3.0, 0.003]), start=1):
        grads = np.array(gradient)
        rows.append(Row(f"g of update {step}", grads.copy()))
        reference.adam_update(p, grads, m, v, **options, step=step)
        rows += [Row(name, array.copy()) for name, array in (("m", m), ("v", v), ("p", p))]
    text = r"""Two updates of AdamW with $lr = 0.1$, $\beta_1 = 0.9$, $\beta_2 = 0.95$ and
$weight_decay = 0.5$. The second gradient is a thousand times smaller than the first, and
its parameter moves as far."""
    return Example(text, rows)


def sgd() -> Example:
    p, velocity = np.array([1.0, 1.0]), np.zeros(2)
    rows = [Row("p before", p.copy())]
    for step in (1, 2):
        grads = np.array([1.0, 0.001])
        reference.sgd_update(p, grads, velocity, lr=0.1, momentum=0.9, weight_decay=0.0)
        rows += [Row(f"u of update {step}", velocity.copy()), Row("p", p.copy())]
    text = "Two updates with the gradient (1, 0.001), $lr = 0.1$ and $momentum = 0.9$."
    return Example(text, rows)


def muon() -> Example:
    from npllm.reference.muon import orthogonal

    u = Draw(20)(2, 3)
    made_equal = orthogonal(u)
    rows = [Row("u", u), Row("singular values of u", np.linalg.svd(u, compute_uv=False))]
    rows += [Row("orthogonal(u)", made_equal)]
    rows += [Row("its singular values", np.linalg.svd(made_equal, compute_uv=False))]
    return Example("The two directions of a (2, 3) matrix get nearly the same length.", rows)


def gradient_norm() -> Example:
    grads = np.array([3.0, 4.0])
    norm = reference.gradient_norm(grads)
    text = "With a largest norm of 1 the gradient is divided by its norm."
    return Example(text, [Row("g", grads), Row("norm", norm), Row("clipped g", grads / norm)])


def random() -> Example:
    from npllm.reference.random import random_words

    words = random_words(8, seed=0, step=1, stream=EMBEDDING_DROPOUT)
    alone = random_words(4, seed=0, step=1, stream=EMBEDDING_DROPOUT, first=4)
    rows = [Row("words 0 to 7", words), Row("words 4 to 7, drawn alone", alone)]
    return Example("The address alone decides: drawn alone or in a row, a word is the same.", rows)


def weights() -> Example:
    config = _small_config()
    rows = [
        Row(name, f"{' x '.join(map(str, shape))}, standard deviation {initial_weights(config, 0)[name].std():.4f}")
        for name, shape in weight_shapes(config).items()
    ]
    return Example("Every weight of a network with one block of width 4 and six tokens.", rows)


def losses() -> Example:
    from npllm.rlhf.losses import bradley_terry, clipped_policy, clipped_value, direct_preference

    draw = Draw(21)
    pairs = {"chosen": draw(3), "rejected": draw(3)}
    references = draw(3), draw(3)
    old, advantage = draw(3), draw(3)
    policy = {"log_probability": old + np.array([-0.5, 0.1, 0.5])}
    value = {"value": old + np.array([-0.5, 0.1, 0.5])}
    target = draw(3)
    rows = _of_loss("reward model: ", pairs, lambda: bradley_terry(*pairs.values()))
    rows += _of_loss("DPO: ", pairs, lambda: direct_preference(*pairs.values(), *references, 0.5))
    rows += _of_loss("PPO: ", policy, lambda: clipped_policy(policy["log_probability"], old, advantage, 0.2, 3)[:2])
    rows += _of_loss("PPO: ", value, lambda: clipped_value(value["value"], old, target, 0.2, 3)[:2])
    text = "Three pairs or three tokens each. A gradient of 0 in PPO's losses is the work of the clip."
    return Example(text, rows)


def _of_loss(name: str, inputs: Arrays, loss: Callable[[], tuple]) -> list[Row]:
    """The rows of a function that returns a loss and its gradients, one an input."""
    value, *gradients = loss()
    rows = [
        Row(
            name + each,
            array,
            gradient,
            largest_error(lambda: loss()[0], array, gradient, range(array.size)),
        )
        for (each, array), gradient in zip(inputs.items(), gradients, strict=True)
    ]
    return [*rows, Row(f"{name}loss", value)]


def advantages() -> Example:
    from npllm.rlhf.advantages import generalised_advantages, group_relative, leave_one_out

    rewards, values = np.array([[0.0, 0.0, 1.0]]), np.array([[0.2, 0.4, 0.7]])
    advantage, returns = generalised_advantages(rewards, values, np.ones((1, 3), bool), 1.0, 0.95)
    scores = np.array([1.0, 0.0, 0.0, 1.0])
    rows = [Row("r", rewards), Row("V", values), Row("A", advantage), Row("A + V", returns)]
    rows += [Row("returns of four responses", scores)]
    rows += [Row("RLOO, groups of two", leave_one_out(scores, 2)), Row("GRPO", group_relative(scores, 2))]
    return Example(r"Three tokens with $\gamma = 1$ and $\lambda = 0.95$; then two prompts with two responses.", rows)


def naive_bpe() -> Example:
    from npllm.tokenizer.byte_table import BYTE_TO_ID, ID_TO_BYTE
    from npllm.tokenizer.naive_bpe import naive_encode, naive_learn_merges

    merges = naive_learn_merges({b"low": 1, b"lower": 1, b"lowest": 1}, 4)
    texts = [bytes([byte]) for byte in ID_TO_BYTE]
    rows = []
    for number, (left, right) in enumerate(merges):
        texts.append(texts[left] + texts[right])
        rows.append(Row(f"merge {number}", f"{texts[left].decode()} + {texts[right].decode()}: token {256 + number}"))
    ranks, products = {pair: rank for rank, pair in enumerate(merges)}, list(range(256, 256 + len(merges)))
    ids = naive_encode([BYTE_TO_ID[byte] for byte in b"slowest"], ranks, products)
    rows.append(Row("slowest", " ".join(f"{texts[each].decode()} ({each})" for each in ids)))
    return Example("Four merges learnt from low, lower and lowest, and a word that was not there.", rows)


def _small_config() -> TransformerConfig:
    widths = {"head_width": 2, "n_embd": 4, "mlp_width": 8}
    return TransformerConfig(vocab_size=6, block_size=3, n_layer=1, n_head=2, kv_heads=1, **widths)


def block() -> Example:
    from npllm.reference.block import block_backward, block_forward

    draw, config = Draw(22), _small_config()
    p = {name: draw(*shape) for name, shape in weight_shapes(config).items() if name.startswith("blocks.0")}
    a = {"x": draw(3, 4), **p}

    def backward(given: Arrays) -> Arrays:
        dp = {name: np.zeros_like(array) for name, array in p.items()}
        cache = block_forward(config, p, "blocks.0", a["x"], 3)[1]
        return {"x": block_backward(config, p, dp, "blocks.0", given["y"], cache), **dp}

    rows = checked(draw, a, lambda: {"y": block_forward(config, p, "blocks.0", a["x"], 3)[0]}, backward)
    return Example("One block of width 4 with two query heads that share a key/value head.", rows)


def transformer() -> Example:
    rng = np.random.default_rng(0)
    tokenizer = lesson.Characters(lesson.TEXT)
    tokens = tokenizer.encode(lesson.TEXT)
    config = lesson.small_network(len(tokenizer.vocabulary))
    p = initial_weights(config, seed=0)
    falling = np.array(list(lesson.train(config, p, tokens, LESSON_UPDATES, rng)))
    batch = lesson.random_batch(tokens, 2, config.block_size, rng)
    loss, dp = loss_and_gradients(config, p, *batch)
    rows = []
    for name, array in p.items():
        places = rng.choice(array.size, lesson.CHECKED, replace=False)
        error = largest_error(lambda: mean_loss(config, p, *batch), array, dp[name], places)
        rows.append(Row(name, array, dp[name], error))
    text = f"""The network of `python -m npllm.reference`, trained for {LESSON_UPDATES} updates on eight
lines of text. Each gradient is compared with differences at {lesson.CHECKED} random entries."""
    return Example(text, [Row("loss of each update", falling), Row("loss", loss), *rows])


EXAMPLES: dict[str, Callable[[], Example]] = {
    f"reference/{example.__name__}.py": example
    for example in (
        layers.linear,
        layers.gelu,
        layers.relu2,
        layers.swiglu,
        layers.layernorm,
        layers.rmsnorm,
        layers.embedding,
        layers.attention,
        layers.qk_norm,
        layers.rotary,
        layers.dropout,
        layers.add_norm,
        layers.lm_head_loss,
        layers.lm_head_policy,
        differences,
        adam,
        sgd,
        muon,
        gradient_norm,
        random,
        weights,
        block,
        transformer,
    )
} | {"rlhf/losses.py": losses, "rlhf/advantages.py": advantages, "tokenizer/naive_bpe.py": naive_bpe}
