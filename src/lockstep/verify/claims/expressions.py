"""The small language of claim files: expressions over facts and captures, and calls of steps.

Python's own grammar, of which only numbers, words, names, lists, arithmetic and comparisons are
taken; the tree is walked, nothing is evaluated by Python itself.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain

from lockstep.errors import UsageError, nearest

Value = int | float | str | list["Value"]
MAX_TEXT = 4000  # signs of one expression
MAX_ITEMS = 1 << 18  # of the lists of one expression together
MAX_BITS = 256  # of an integer
MAX_DEPTH = 100  # of expressions in each other; a sum of so many is one too

_ARITHMETIC: dict[type[ast.operator], Callable[[Value, Value], Value]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_COMPARISONS: dict[type[ast.cmpop], Callable[[Value, Value], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_KNOWN: tuple[type[ast.AST], ...] = (
    *(ast.Name, ast.List, ast.Tuple, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare),
    *(ast.expr_context, ast.USub, ast.Not, ast.And, ast.Or, ast.In, ast.NotIn),
    *_ARITHMETIC,
    *_COMPARISONS,
)
_HINT = "use numbers, words, names of facts and captures, + - * // % ( ), lists and range()"


@dataclass(frozen=True, slots=True)
class Expression:
    """A parsed expression, with the text that it came from."""

    text: str
    tree: ast.expr = field(repr=False, compare=False)

    @property
    def names(self) -> frozenset[str]:
        """The names that it needs values for."""
        return names_in(self.tree)


@dataclass(frozen=True, slots=True)
class Call:
    """One parsed step: its name, its arguments in order, and those given by name."""

    text: str
    name: str
    args: tuple[ast.expr, ...] = field(repr=False, compare=False)
    options: tuple[tuple[str, ast.expr], ...] = field(repr=False, compare=False)


def parse_expression(text: str, where: str) -> Expression:
    """An expression such as `hidden // n_heads` or `layer % 6 == 5`.

    Raises: UsageError if it is something else.
    """
    tree = _parse(text, where, "an expression")
    _check(tree, text, where)
    return Expression(text, tree)


def parse_call(text: str, where: str) -> Call:
    """A step such as `permute(0, 2, 1)`.

    Raises: UsageError if it is something else.
    """
    tree = _parse(text, where, "a step such as 'permute(1, 0)'")
    if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name):
        raise UsageError(
            f"{where}: expected a step such as 'permute(1, 0)', got {text!r:.80}",
            hint="write the name of a step with its arguments in brackets",
        )
    options = []
    for keyword in tree.keywords:
        if keyword.arg is None:
            raise UsageError(f"{where}: expected no **, got {text!r:.80}", hint=_HINT)
        options.append((keyword.arg, keyword.value))
    for argument in chain(tree.args, (value for _, value in options)):
        _check(argument, text, where)
    return Call(text, tree.func.id, tuple(tree.args), tuple(options))


def evaluate(tree: ast.expr, names: Mapping[str, object], where: str) -> Value:
    """The value of a parsed expression.

    Raises: UsageError for an unknown name, a division by zero, or values that do not fit.
    """
    try:
        return _value(tree, _Names(names))
    except (TypeError, ValueError, ArithmeticError, IndexError, RecursionError) as error:
        raise UsageError(
            f"{where}: expected values that fit {ast.unparse(tree)!r:.80}, got an error: {error}",
            hint="check the facts and captures that the expression uses",
        ) from error
    except KeyError as error:
        known = ", ".join(sorted(map(str, names))) or "none"
        raise UsageError(
            f"{where}: expected a name of a fact or a capture, got {error.args[0]!r:.80}",
            hint=f"state it under [facts]; known here: {known:.300}",
        ) from error


def holds(expression: Expression, names: Mapping[str, object], where: str) -> bool:
    """Whether a condition is true."""
    return bool(evaluate(expression.tree, names, where))


def names_in(tree: ast.expr) -> frozenset[str]:
    """The names in an expression, without those of functions."""
    functions = {id(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)}
    found = (n for n in ast.walk(tree) if isinstance(n, ast.Name) and id(n) not in functions)
    return frozenset(n.id for n in found)


def spelled(value: object) -> str:
    """A value as a claim file spells it; long lists are shortened."""
    if isinstance(value, list | tuple):
        shown = [spelled(v) for v in value[:8]]
        return "[" + ", ".join(shown) + (f", ... {len(value)} in all]" if len(value) > 8 else "]")
    return str(value)


def _parse(text: str, where: str, wanted: str) -> ast.expr:
    if len(text) > MAX_TEXT:
        raise UsageError(
            f"{where}: expected at most {MAX_TEXT} signs, got {len(text)}", hint="use range()"
        )
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UsageError(f"{where}: expected {wanted}, got {text!r:.80}", hint=_HINT) from error


def _check(tree: ast.expr, text: str, where: str) -> None:
    """Refuses what the language has not, before anything has a value."""
    waiting: list[tuple[ast.AST, int]] = [(tree, 0)]
    while waiting:
        node, depth = waiting.pop()
        if not _is_known(node) or depth > MAX_DEPTH:
            got = type(node).__name__ if depth <= MAX_DEPTH else f"more than {MAX_DEPTH} levels"
            raise UsageError(
                f"{where}: expected a plain expression, got {got} in {text!r:.80}", hint=_HINT
            )
        waiting += ((child, depth + 1) for child in ast.iter_child_nodes(node))


def _is_known(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant):
        return type(node.value) in (int, float, str)
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id == "range" and not node.keywords
    return isinstance(node, _KNOWN)


class _Names:
    """Values by name, and how many items the lists of one expression may still have."""

    def __init__(self, values: Mapping[str, object]) -> None:
        self.values, self.n_left = values, MAX_ITEMS

    def spend(self, n_items: int) -> None:
        """Raises: OverflowError if the expression made too many."""
        self.n_left -= n_items
        if self.n_left < 0:
            raise OverflowError(f"a list of more than {MAX_ITEMS} items, or some together")


def _value(node: ast.expr, names: _Names) -> Value:
    if isinstance(node, ast.Constant):
        assert isinstance(node.value, int | float | str)
        return node.value
    if isinstance(node, ast.Name):
        found = _plain(names.values[node.id])
        names.spend(len(found) if isinstance(found, list) else 0)
        return found
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(item, names) for item in node.elts]
    if isinstance(node, ast.Call):
        return _range([_integer(_value(argument, names)) for argument in node.args], names)
    if isinstance(node, ast.UnaryOp):
        inner = _value(node.operand, names)
        return int(not inner) if isinstance(node.op, ast.Not) else -_number(inner)
    if isinstance(node, ast.BinOp):
        return _arithmetic(node.op, _value(node.left, names), _value(node.right, names), names)
    if isinstance(node, ast.BoolOp):
        needed = all if isinstance(node.op, ast.And) else any
        return int(needed(_value(part, names) for part in node.values))
    assert isinstance(node, ast.Compare)
    return int(_compared(node, names))


def _compared(node: ast.Compare, names: _Names) -> bool:
    left = _value(node.left, names)
    for op, tree in zip(node.ops, node.comparators, strict=True):
        right = _value(tree, names)
        if isinstance(op, ast.In | ast.NotIn):
            if not isinstance(right, list):
                raise TypeError("expected a list after 'in'")
            found = (left in right) == isinstance(op, ast.In)
        else:
            found = _COMPARISONS[type(op)](left, right)
        if not found:
            return False
        left = right
    return True


def _arithmetic(op: ast.operator, left: Value, right: Value, names: _Names) -> Value:
    if isinstance(left, list) and isinstance(right, list) and isinstance(op, ast.Add):
        names.spend(len(left) + len(right))
        return [*left, *right]
    result = _ARITHMETIC[type(op)](_number(left), _number(right))
    if isinstance(result, int) and result.bit_length() > MAX_BITS:
        raise OverflowError(f"a number of more than {MAX_BITS} bits")
    return result


def _range(bounds: list[int], names: _Names) -> Value:
    if not 1 <= len(bounds) <= 3:
        raise TypeError("range() takes one to three numbers")
    found = range(*bounds)
    names.spend(len(found))
    return list(found)


def _plain(value: object) -> Value:
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    raise TypeError(f"a number, a word or a list was expected, not {type(value).__name__}")


def _number(value: Value) -> int | float:
    if isinstance(value, int | float):
        return value
    raise TypeError(f"{spelled(value):.40} is no number")


def _integer(value: Value) -> int:
    if isinstance(value, int):
        return value
    raise TypeError(f"{spelled(value):.40} is no integer")


def known_names(expressions: Iterable[Expression], names: Iterable[str], where: str) -> None:
    """Insists that all names are known.

    Raises: UsageError naming the first that is not.
    """
    known = set(names)
    for expression in expressions:
        for name in sorted(expression.names - known):
            shown = ", ".join(sorted(known)) or "none"
            raise UsageError(
                f"{where}: expected a name of a fact or a capture, got {name!r:.80} "
                f"in {expression.text!r:.80}",
                hint=f"{nearest(name, known)}state it under [facts]; known here: {shown:.300}",
            )
