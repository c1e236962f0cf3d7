"""The functions that are on trial, the tests that judge them, and all their mutants."""

import ast
import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mutation.mistakes import Edit, edits, source_of

BF16 = "tests/kernels/test_bfloat16.py"
BY_HAND = "tests/rlhf/test_rollouts_by_hand.py"
DETAILS = "tests/kernels/test_kernel_details.py"
OPS = "tests/reference/test_gradients_of_ops.py"
PLAIN = "tests/reference/test_plain_transformer.py"
MODEL = "tests/model/test_model_gradients.py"
RLHF = "tests/rlhf/test_rlhf_gradients.py"


class Target(NamedTuple):
    """Functions of one file, and the tests that judge them.

    functions: with the names of what they are in, such as `LoRA.take_gradients`. tests:
    FILE, or FILE::WORD for the tests of a file whose names have this word. Those that
    cost least come first.
    """

    file: str
    functions: tuple[str, ...]
    tests: tuple[str, ...]

    @property
    def of_kernels(self) -> bool:
        """Whether the file is one of kernels."""
        return self.file.startswith("npllm/kernels/")

    def place_of(self, node: str) -> int | None:
        """Return the place in `tests` of the test with this node id of pytest.

        None: it does not judge the target. Of tests that run with both backends, one
        does: that of the file, and the reference, which is faster, for a model.
        """
        file, name = node.split("::", 1)
        if ("reference" if self.of_kernels else "kernels") in name.partition("[")[2]:
            return None
        places = (
            place
            for place, (path, _, word) in enumerate(test.partition("::") for test in self.tests)
            if path == file and word in name
        )
        return next(places, None)


def _reference(name: str, *functions: str, tests: tuple[str, ...] = ()) -> Target:
    return Target(f"npllm/reference/{name}.py", functions, tests or (f"{OPS}::test_{name}",))


def _kernel(name: str, *functions: str, tests: tuple[str, ...] = ()) -> Target:
    return Target(f"npllm/kernels/{name}.py", functions, tests or (f"{OPS}::test_{name}",))


NORMS = f"{OPS}::test_layernorm", f"{OPS}::test_rmsnorm", f"{OPS}::test_add_norm"

TARGETS = [
    _reference("add_norm", "add_norm_backward"),
    _reference("attention", "attention_backward"),
    _reference("dropout", "dropout_backward"),
    _reference("embedding", "embedding_backward", tests=(f"{OPS}::embedding",)),
    _reference("gelu", "gelu_backward"),
    _reference("layernorm", "layernorm_backward"),
    _reference("linear", "linear_backward"),
    _reference("lm_head_loss", "lm_head_loss_backward", "lm_head_loss_and_grad"),
    _reference("lm_head_policy", "lm_head_policy_backward"),
    _reference("qk_norm", "qk_norm_backward"),
    _reference("relu2", "relu2_backward"),
    _reference("rmsnorm", "rmsnorm_backward"),
    _reference("rotary", "rotary_backward"),
    _reference("swiglu", "swiglu_backward"),
    _reference(
        "block",
        "block_backward",
        "attend_backward",
        "mlp_backward",
        "linear_gradient",
        "norm_backward",
        tests=(PLAIN,),
    ),
    _reference("transformer", "transformer_backward", "loss_and_gradients", tests=(PLAIN,)),
    _kernel("add_norm", "add_norm_backward"),
    _kernel(
        "attention",
        "attention_backward",
        "_backward",
        "_backward_kv_head",
        "_weights_and_dscores",
        "_add_to_dk_and_dv",
        "_store_dq",
    ),
    _kernel(
        "attention_tiles",
        "add_scores_times_rows",
        "pack_query_rows",
        "store_rows",
        "load_lse",
        "probabilities",
        "softmax_backward",
        tests=(f"{OPS}::test_attention",),
    ),
    _kernel("chunks", "add_in_order", tests=NORMS),
    _kernel("dropout", "dropout_backward"),
    _kernel("embedding", "embedding_backward", "_backward", tests=(f"{OPS}::embedding",)),
    _kernel("gelu", "gelu_backward", "gelu_derivative", "_backward", "_backward_chunk"),
    _kernel("layernorm", "layernorm_backward"),
    _kernel(
        "linear",
        "linear_backward",
        "_epilogue_backward",
        "_epilogue_backward_rows",
        tests=(f"{OPS}::test_linear", f"{BF16}::test_linear"),
    ),
    _kernel(
        "lm_head_loss",
        "lm_head_loss_backward",
        "lm_head_loss_and_grad",
        "_softmax_row",
        "_gradient_rows",
        "_gradient_row",
        tests=(f"{OPS}::test_lm_head_loss", f"{DETAILS}::test_a_target_outside"),
    ),
    _kernel("lm_head_policy", "lm_head_policy_backward", "_gradient_rows", "_gradient_row"),
    _kernel("logit_chunks", "multiply_gradient", tests=(f"{OPS}::test_lm_head", f"{BF16}::test_the_head")),
    _kernel("norm_rows", "norm_backward", "_backward", "_backward_rows", "_row_sums", tests=NORMS),
    _kernel("qk_norm", "qk_norm_backward", "_backward", "_backward_rows", "_heads_backward", "_row_sum"),
    _kernel("relu2", "relu2_backward", "_backward", "_backward_chunk"),
    _kernel("rmsnorm", "rmsnorm_backward"),
    _kernel("rotary", "rotary_backward"),
    _kernel("swiglu", "swiglu_backward", "_backward", "_backward_chunk"),
    Target(
        "npllm/model/block.py",
        (
            "norm_backward",
            "qkv_backward",
            "mlp_backward",
            "block_backward",
            "_second_half_backward",
            "_first_half_backward",
        ),
        (f"{MODEL}::test_gradient_of_a_later", f"{MODEL}::test_gradient_of_every_element", MODEL),
    ),
    Target("npllm/model/lora.py", ("LoRA.take_gradients",), ("tests/model/test_lora.py::test_gradient",)),
    Target(
        "npllm/model/transformer.py",
        (
            "GPT.backward",
            "GPT.log_probability_backward",
            "GPT.readout_backward",
            "GPT.loss_and_grad",
            "GPT._backward",
        ),
        (
            f"{MODEL}::test_a_gradient_is_final",
            f"{MODEL}::test_gradient_of_a_later",
            "tests/model/test_model_evaluation.py::test_bad_input",
            "tests/model/test_lora.py::test_gradient",
            MODEL,
        ),
    ),
    Target("npllm/rlhf/dpo.py", ("preference_gradient",), (f"{RLHF}::test_direct_preference",)),
    Target(
        "npllm/rlhf/losses.py",
        ("sigmoid", "bradley_terry", "direct_preference", "clipped_policy", "clipped_value"),
        ("tests/rlhf/test_rlhf_losses.py", f"{RLHF}::test_the_share_of_clipped"),
    ),
    Target(
        "npllm/rlhf/ppo_gradient.py",
        ("policy_and_value_gradient", "value_gradient"),
        (f"{RLHF}::test_policy", f"{RLHF}::test_the_share_of_clipped", f"{BY_HAND}::test_an_update"),
    ),
    Target("npllm/rlhf/reward.py", ("RewardGradients.__call__.gradient",), (f"{RLHF}::test_bradley_terry",)),
]

# Functions with such a name that are no backward.
OTHERS = {
    "npllm/kernels/attention.py": {"backward_scratch", "_own_backward_scratch"},  # sizes and views of memory
    "npllm/model/footprint.py": {"_Rows.norm_backward", "_Rows.linear_backward", "_Rows.block_backward"},  # bytes
}
ROOMS = "npllm/reference", "npllm/kernels", "npllm/model", "npllm/rlhf"


class Mutant(NamedTuple):
    """One mistake in one function.

    number: its place among all mutants, from 1. before, after: the source lines that
    differ, each in one line. source: the whole file with the mistake.
    """

    number: int
    target: Target
    function: str
    kind: str
    line: int
    before: str
    after: str
    source: str

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What names the mutant for as long as its lines stay the same."""
        return self.target.file, self.function, self.before, self.after

    def diff(self, root: Path) -> str:
        """Return the difference from the file."""
        lines = [text.splitlines(keepends=True) for text in ((root / self.target.file).read_text(), self.source)]
        return "".join(difflib.unified_diff(*lines, self.target.file, f"mutant {self.number}", n=2))


def all_mutants(root: Path, targets: list[Target]) -> list[Mutant]:
    """Return the mutants of all targets, numbered in the order of files and lines."""
    found = (mutant for target in targets for mutant in _mutants_of(root, target))
    return [mutant._replace(number=number) for number, mutant in enumerate(found, start=1)]


def functions_of(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef]]:
    """Yield the name and definition of all functions, those in classes and functions
    too.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            if isinstance(node, ast.FunctionDef):
                yield prefix + node.name, node
            yield from functions_of(node, f"{prefix}{node.name}.")
        else:
            yield from functions_of(node, prefix)


def _mutants_of(root: Path, target: Target) -> Iterator[Mutant]:
    source = (root / target.file).read_text(encoding="utf-8")
    functions = dict(functions_of(ast.parse(source)))
    for name in target.functions:
        if name not in functions:
            raise ValueError(f"{target.file} has no function {name}; name those on trial in tools/mutation/mutants.py.")
    lines, seen = source.encode().splitlines(keepends=True), {source}
    for name, function in functions.items():
        if name in target.functions:
            parents = {child: node for node in ast.walk(function) for child in ast.iter_child_nodes(node)}
            for edit in edits(function):
                mutant = _mutant(target, name, edit, lines, source_of(edit, parents[edit.old]))
                if mutant.source not in seen:  # x * x without the first factor is x * x without the second
                    seen.add(mutant.source)
                    yield mutant


def _mutant(target: Target, function: str, edit: Edit, lines: list[bytes], text: str) -> Mutant:
    old = edit.old
    first, last = old.lineno - 1, old.end_lineno - 1
    before = b"".join(lines[first : last + 1])
    after = lines[first][: old.col_offset] + text.encode() + lines[last][old.end_col_offset :]
    source = b"".join([*lines[:first], after, *lines[last + 1 :]]).decode()
    return Mutant(0, target, function, edit.kind, old.lineno, _in_one_line(before), _in_one_line(after), source)


def _in_one_line(source: bytes) -> str:
    return " ".join(source.decode().split())


def not_on_trial(root: Path) -> list[str]:
    """Return the backwards in the four rooms that no target names."""
    named = {target.file: {*target.functions} for target in TARGETS}
    missing = []
    for room in ROOMS:
        for path in sorted((root / room).rglob("*.py")):
            file = path.relative_to(root).as_posix()
            known = named.get(file, set()) | OTHERS.get(file, set())
            for name, _ in functions_of(ast.parse(path.read_text(encoding="utf-8"))):
                if ("backward" in name or name.endswith("_and_grad")) and name not in known:
                    missing.append(f"{file}: {name}")
    return missing
