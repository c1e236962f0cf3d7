"""The mistakes that are planted: small edits of a function's syntax tree.

Each is one that is made in practice when a gradient is written by hand:

    sign         a sign is flipped
    term         a term of a sum is left out
    factor       a factor, a divisor or an exponent is left out
    transpose    a transpose is left out; the factors of a matrix product change places
    axis         a reduction runs over another axis
    overwrite    `=` in place of `+=`
    off by one   an index, a slice, a range or a comparison ends one place elsewhere
    normaliser   a divisor is too large by one; a mean in place of a sum, and vice versa
    constant     a number is twice as large; 1 in place of 0
    condition    a condition is negated
    stale        an update is left out: what follows uses the value before it
    exchange     two results change places

The bounds of slices and ranges are off by one, and nothing else. Not mutated are
docstrings, messages and default values; shapes of new arrays and the arguments of
`reshape`, because mistakes there end in an exception, which proves nothing; and the
values of a dict, which are figures for a report and no gradients.
"""

import ast
from collections.abc import Iterator
from typing import NamedTuple

OPPOSITE = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
BOUNDS = ast.Lt, ast.LtE, ast.Gt, ast.GtE
EXCHANGED_REDUCTIONS = {"mean": "sum", "sum": "mean"}
RANGES = {"range", "prange", "slice"}
WITHOUT_MISTAKES = {"empty", "empty_like", "zeros", "zeros_like", "reshape", "astype"} | RANGES  # in their arguments
OPERATIONS = ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp


class Edit(NamedTuple):
    """A part of the tree, and what replaces it."""

    kind: str
    old: ast.AST
    new: ast.AST


def edits(function: ast.FunctionDef) -> list[Edit]:
    """Return all edits of a function, in the order of its source."""
    found = _edits_of_statements(function.body, _arguments(function), set(_arguments(function)))
    return sorted(found, key=lambda edit: _place(edit.old))


def _place(node: ast.AST) -> tuple[int, int, int, int]:
    return node.lineno, node.col_offset, node.end_lineno, node.end_col_offset


def _arguments(function: ast.FunctionDef) -> list[str]:
    arguments = function.args
    return [argument.arg for argument in arguments.posonlyargs + arguments.args + arguments.kwonlyargs]


def _edits_of_statements(statements, arguments, bound: set[str]) -> Iterator[Edit]:
    """Yield the edits of a block. bound: the names that have a value before it."""
    for statement in statements:
        if isinstance(statement, ast.Raise | ast.Assert | ast.FunctionDef) or _is_text(statement):
            continue
        if _is_update(statement, bound):
            yield Edit("stale", statement, ast.Pass())
        if isinstance(statement, ast.AugAssign):
            yield from _of_augmented(statement, arguments)
        for name, field in ast.iter_fields(statement):
            if name in ("body", "orelse", "finalbody"):
                yield from _edits_of_statements(field, arguments, bound)
            elif name not in ("annotation", "type_comment"):
                for part in field if isinstance(field, list) else [field]:
                    yield from _edits_of_expression(part)
        if isinstance(statement, ast.If | ast.While):
            yield from _of_condition(statement.test)
        if isinstance(statement, ast.Return) and isinstance(statement.value, ast.Tuple):
            first, *others = statement.value.elts
            if len(others) == 1:
                yield Edit("exchange", statement.value, ast.Tuple([others[0], first], ast.Load()))
        bound |= {node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and _is_stored(node)}


def _is_text(statement) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _is_stored(node) -> bool:
    return isinstance(node.ctx, ast.Store)


def _is_update(statement, bound: set[str]) -> bool:
    """Whether a statement changes something that has a value already."""
    if isinstance(statement, ast.AugAssign):
        return True
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Call)
    if not isinstance(statement, ast.Assign):
        return False
    targets = [target for each in statement.targets for target in getattr(each, "elts", [each])]
    return all(not isinstance(target, ast.Name) or target.id in bound for target in targets)


def _of_augmented(statement: ast.AugAssign, arguments) -> Iterator[Edit]:
    """`a += b` becomes `a -= b` and `a = b`, in place where `a` is an argument."""
    target, op, value = statement.target, statement.op, statement.value
    if type(op) not in (ast.Add, ast.Sub):
        return
    yield Edit("sign", statement, ast.AugAssign(target, OPPOSITE[type(op)](), value))
    of_caller = isinstance(target, ast.Name) and target.id in arguments
    whole = ast.Subscript(target, ast.Constant(...), ast.Store()) if of_caller else target
    yield Edit("overwrite", statement, ast.Assign([whole], value, lineno=statement.lineno))


def _of_condition(test: ast.expr) -> Iterator[Edit]:
    """The condition of an `if` that no other mistake negates."""
    if not isinstance(test, ast.Compare | ast.BoolOp | ast.UnaryOp):
        yield Edit("condition", test, ast.UnaryOp(ast.Not(), test))


def _edits_of_expression(node) -> Iterator[Edit]:
    if not isinstance(node, ast.AST) or isinstance(node, ast.JoinedStr | ast.Lambda | ast.Slice | ast.Dict):
        return
    if isinstance(node, ast.expr):
        yield from _of_expression(node)
    for child in ast.iter_child_nodes(node):
        if not (isinstance(node, ast.Call) and _called(node) in WITHOUT_MISTAKES and child is not node.func):
            yield from _edits_of_expression(child)


def _called(call: ast.Call) -> str:
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def _of_expression(node) -> Iterator[Edit]:
    match node:
        case ast.BinOp(left, op, right):
            yield from _of_operation(node, left, type(op), right)
        case ast.UnaryOp(ast.USub(), operand) if not _is_integer(operand):
            yield Edit("sign", node, operand)
        case ast.UnaryOp(ast.Not(), operand):
            yield Edit("condition", node, operand)
        case ast.BoolOp(op, values):
            yield Edit("condition", node, ast.BoolOp(OPPOSITE[type(op)](), values))
        case ast.Compare(left, [op], right) if type(op) in OPPOSITE:
            kind = "off by one" if isinstance(op, BOUNDS) else "condition"
            yield Edit(kind, node, ast.Compare(left, [OPPOSITE[type(op)]()], right))
        case ast.Constant(float(value)):
            yield Edit("constant", node, ast.Constant(2.0 * value if value else 1.0))
        case ast.Attribute(value, "T"):
            yield Edit("transpose", node, value)
        case ast.Subscript(_, index):
            yield from _of_index(index)
        case ast.Call():
            yield from _of_call(node)


def _of_operation(node, left, op, right) -> Iterator[Edit]:
    if op in (ast.Add, ast.Sub):
        yield Edit("sign", node, ast.BinOp(left, OPPOSITE[op](), right))
        yield Edit("term", node, left)
        yield Edit("term", node, right if op is ast.Add else ast.UnaryOp(ast.USub(), right))
    elif op is ast.Mult:
        yield Edit("factor", node, left)
        yield Edit("factor", node, right)
    elif op in (ast.Div, ast.FloorDiv):
        yield Edit("factor", node, left)
        yield Edit("normaliser", node, ast.BinOp(left, op(), _plus(right, 1)))
    elif op is ast.Pow:
        yield Edit("factor", node, left)
    elif op is ast.MatMult:
        yield Edit("transpose", node, ast.BinOp(right, op(), left))


def _is_integer(node) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) is int


def _plus(node: ast.expr, n: int) -> ast.expr:
    """Return node + n, for n = 1 or -1."""
    if _is_integer(node):
        return ast.Constant(node.value + n)
    return ast.BinOp(node, ast.Add() if n > 0 else ast.Sub(), ast.Constant(1))


def _of_index(index) -> Iterator[Edit]:
    for part in index.elts if isinstance(index, ast.Tuple) else [index]:
        if _is_integer(part):
            yield Edit("off by one", part, ast.Constant(part.value - 1 if part.value else 1))
        if isinstance(part, ast.Slice):
            if part.lower is not None:
                yield Edit("off by one", part.lower, _plus(part.lower, 1))
            if part.upper is not None:
                yield Edit("off by one", part.upper, _plus(part.upper, -1))


def _of_call(node: ast.Call) -> Iterator[Edit]:
    name, arguments = _called(node), node.args
    if isinstance(node.func, ast.Attribute):
        value = node.func.value
        if name in EXCHANGED_REDUCTIONS:
            new = ast.Attribute(value, EXCHANGED_REDUCTIONS[name], ast.Load())
            yield Edit("normaliser", node, ast.Call(new, arguments, node.keywords))
        if name == "swapaxes":
            yield Edit("transpose", node, value)
        if name == "transpose" and len(arguments) > 1:
            exchanged = [*arguments[:-2], arguments[-1], arguments[-2]]
            yield Edit("transpose", node, ast.Call(node.func, exchanged, node.keywords))
    if name in RANGES:
        yield from _of_range(node)
    for keyword in node.keywords:
        if keyword.arg == "axis":
            yield Edit("axis", keyword.value, _other_axis(keyword.value))


def _of_range(node: ast.Call) -> Iterator[Edit]:
    """It starts one place later; it ends one place earlier."""
    start, end, *step = [ast.Constant(0), *node.args] if len(node.args) == 1 else node.args
    for bounds in ([_plus(start, 1), end], [start, _plus(end, -1)]):
        yield Edit("off by one", node, ast.Call(node.func, bounds + step, []))


def _other_axis(axis: ast.expr) -> ast.expr:
    if isinstance(axis, ast.Tuple):
        return axis.elts[0]
    value = ast.literal_eval(axis)
    return ast.Constant({0: 1, -1: -2}.get(value, value - 1))


def source_of(edit: Edit, parent: ast.AST) -> str:
    """Return the text that replaces the old part, in parentheses where it needs them.

    parent: the node that holds the old part.
    """
    text, old, new = ast.unparse(edit.new), edit.old, edit.new
    same_rank = isinstance(old, ast.BinOp) and isinstance(new, ast.BinOp) and _rank(old) == _rank(new)
    inside = isinstance(parent, OPERATIONS + (ast.Attribute, ast.Subscript))
    return f"({text})" if inside and isinstance(new, OPERATIONS) and not same_rank else text


def _rank(operation: ast.BinOp) -> int:
    return 1 if isinstance(operation.op, ast.Add | ast.Sub) else 3 if isinstance(operation.op, ast.Pow) else 2
