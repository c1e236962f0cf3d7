"""Mutants that compute the same gradient, each with the argument why.

Key: file, function, and the source lines before and after, as `--list` shows them. An
entry that matches no mutant is an error of the trial, and so is one that is killed.
"""

ATTENTION = "npllm/kernels/attention.py"
TILES = "npllm/kernels/attention_tiles.py"
LOSS = "npllm/kernels/lm_head_loss.py"
PPO = "npllm/rlhf/ppo_gradient.py"
REWARD = "npllm/rlhf/reward.py"

ONE_CHUNK = "ELEMENTS elements are a single chunk, and the parallel kernel computes that chunk as well."
COMPUTED_AGAIN = "The chunks overlap. An element in two of them is computed twice, from the same inputs."
FEWER_WORKERS = "There are fewer workers. Each takes every workers-th head, and their number changes no result."
NO_DROPOUT = "At a rate of 0 the factor of every element is exactly 1, so the product with it changes nothing."
MASKED = (
    "These rows are keys after the block's last query. mask_unseen has set their scores to -inf, so their "
    "probabilities and dscores are zero already, whenever the inputs are finite."
)
WHOLE_TILES = "The product works in whole tiles of rows, and the shorter slice starts the same tiles."
LAST_PIECE = "Starts and end are multiples of L, so the last piece starts before the shorter end too."
UNUSED_LANES = "Only lanes without a query get another value, and nothing reads their results."
OUTSIDE_THE_MASK = "Outside the mask the target is -1, and lm_head_policy_backward gives such rows no gradient."
NO_MASKS = "A reward model has no dropout, so the number of earlier rows addresses no mask."
IGNORED_LSE = "The backward leaves ignored rows before it uses their lse."

WORKERS = "scratch = backward_scratch(min(get_num_threads(), B * n_kv_head), T, D, rate > 0, dtype, empty)"
WEIGHTS = "fill_zeros(scratch.weights[block.end : whole_tiles(block.end)])"
DSCORES = "fill_zeros(scratch.dscores[block.end : whole_tiles(block.end)])"
KEYS = "keys = slice(block.first_key, whole_tiles(block.end))"
PRODUCT = "product(scores, PanelSteps(L, L, 1), rows[p], n_queries, total[p, first : first + len(scores)], True)"
ENTROPY = "dentropy = np.where(mask, -settings.entropy_coef / n_tokens, 0.0).astype(policy.dtype).reshape(-1)"
TRACE = "trace = model.trace(sequences.tokens, step=step, first_row=2 * part.start)"
CHUNK = "start, stop = c * ELEMENTS, (c + 1) * ELEMENTS"

Key = tuple[str, str, str, str]


def _of_chunks(name: str, size: str) -> dict[Key, str]:
    """Return the entries of an activation, whose gradient is computed in chunks."""
    file, function = f"npllm/kernels/{name}.py", f"{name}_backward"
    before, after = (
        f"kernel = _backward_chunk if {test} else _backward" for test in (f"{size} <= ELEMENTS", f"({size} < ELEMENTS)")
    )
    return {
        (file, function, before, after): ONE_CHUNK,
        (file, "_backward", CHUNK, "start, stop = c, (c + 1) * ELEMENTS"): COMPUTED_AGAIN,
    }


EQUIVALENT: dict[Key, str] = {
    **_of_chunks("gelu", "x.size"),
    **_of_chunks("relu2", "x.size"),
    **_of_chunks("swiglu", "dy.size"),
    (ATTENTION, "attention_backward", WORKERS, WORKERS.replace("B * n_kv_head", "B")): FEWER_WORKERS,
    (ATTENTION, "attention_backward", WORKERS, WORKERS.replace("B * n_kv_head", "n_kv_head")): FEWER_WORKERS,
    (ATTENTION, "attention_backward", WORKERS, WORKERS.replace("rate > 0", "rate >= 0")): NO_DROPOUT,
    (ATTENTION, "_weights_and_dscores", WEIGHTS, "pass"): MASKED,
    (ATTENTION, "_weights_and_dscores", WEIGHTS, WEIGHTS.replace("[block.end", "[block.end + 1")): MASKED,
    (ATTENTION, "_weights_and_dscores", WEIGHTS, WEIGHTS.replace(")])", ") - 1])")): MASKED,
    (ATTENTION, "_weights_and_dscores", DSCORES, "pass"): MASKED,
    (ATTENTION, "_weights_and_dscores", DSCORES, DSCORES.replace("[block.end", "[block.end + 1")): MASKED,
    (ATTENTION, "_weights_and_dscores", DSCORES, DSCORES.replace(")])", ") - 1])")): MASKED,
    (ATTENTION, "_add_to_dk_and_dv", KEYS, "keys = slice(block.first_key, whole_tiles(block.end) - 1)"): WHOLE_TILES,
    (TILES, "add_scores_times_rows", PRODUCT, PRODUCT.replace("len(scores)]", "len(scores) - 1]")): WHOLE_TILES,
    (TILES, "load_lse", "fill_zeros(lanes)", "pass"): UNUSED_LANES,
    (TILES, "probabilities", "scores, lse = scores.reshape(-1), lse.reshape(-1)", "pass"): (
        "The loop then goes over rows of lanes in place of single lanes, with the same operations."
    ),
    (TILES, "probabilities", "for start in range(0, len(scores), len(lse)):",
     "for start in range(0, len(scores) - 1, len(lse)):"): LAST_PIECE,
    (TILES, "softmax_backward", "for start in range(0, len(dscores), len(wide_delta)):",
     "for start in range(0, len(dscores) - 1, len(wide_delta)):"): LAST_PIECE,
    (LOSS, "_softmax_row", "lse[n] = real(0.0)", "pass"): IGNORED_LSE,
    (LOSS, "_softmax_row", "lse[n] = real(0.0)", "lse[n] = real(1.0)"): IGNORED_LSE,
    ("npllm/model/block.py", "_second_half_backward", "if rate > 0:", "if rate >= 0:"): NO_DROPOUT,
    ("npllm/model/block.py", "_first_half_backward", "if rate > 0:", "if rate >= 0:"): NO_DROPOUT,
    ("npllm/model/transformer.py", "GPT._backward", "if context.rate > 0:", "if context.rate >= 0:"): NO_DROPOUT,
    (PPO, "policy_and_value_gradient", ENTROPY, ENTROPY.replace("0.0", "1.0")): OUTSIDE_THE_MASK,
    (REWARD, "RewardGradients.__call__.gradient", TRACE, TRACE.replace("2 * part.start", "2")): NO_MASKS,
    (REWARD, "RewardGradients.__call__.gradient", TRACE, TRACE.replace("2 * part.start", "part.start")): NO_MASKS,
    ("npllm/rlhf/losses.py", "clipped_value", "inside = np.abs(value - old_value) <= clip",
     "inside = np.abs(value - old_value) < clip"): (
        "On the edge of the clip the clipped value is the value itself. Its error is then not the larger one, and "
        "`inside` is not used."
    ),
}  # fmt: skip
