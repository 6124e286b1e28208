"""The closed table of steps, and how a chain of them in a claim file becomes layouts and values."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from lockstep.errors import UsageError, nearest
from lockstep.formats.leaf import ELEMENT_TYPES, ElementType
from lockstep.verify.claim import ValueMove
from lockstep.verify.claims import model_moves, moves
from lockstep.verify.claims.expressions import Call, evaluate, names_in, spelled
from lockstep.verify.claims.moves import Array
from lockstep.verify.numbers.values import MOVES, value_move

Arity = Literal["one", "many", "value"]
Context = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Step:
    """What a step takes: one array, many to be joined, or the values of one."""

    name: str
    arity: Arity
    signature: str
    doc: str
    function: Callable[..., Array] | None = None
    parameters: tuple[inspect.Parameter, ...] = ()


def _step(arity: Arity, function: Callable[..., Array]) -> Step:
    hints = get_type_hints(function)
    given = list(inspect.signature(function).parameters.values())[1:]
    parameters = tuple(p.replace(annotation=hints[p.name]) for p in given)
    name = function.__name__.rstrip("_")
    doc = (function.__doc__ or "").partition("\n")[0]
    return Step(name, arity, f"{name}({', '.join(map(_shown, given))})", doc, function, parameters)


def _shown(parameter: inspect.Parameter) -> str:
    if parameter.kind is parameter.VAR_POSITIONAL:
        return f"{parameter.name}..."
    has_default = parameter.default is not parameter.empty
    return f"{parameter.name}={parameter.default}" if has_default else parameter.name


_VALUE_DOCS = {
    "cast": ("TYPE, rounding=RNE, subnormals=keep, nan=keep, overflow=inf", "Rounds to a type."),
    "widen": ("TYPE, nan=raw", "The same numbers in a type that holds them all."),
    "scale": ("c, compute=TYPE", "Times c; exact where c is a power of two."),
    "add_one": ("compute=TYPE", "Plus one, as in norms stored as 1 + w."),
    "subtract_one": ("compute=TYPE", "Minus one, the way back to norms that hold w."),
    "negate": ("", "The sign turned."),
    "exp": ("", "The exponential in float64, rounded once; not exact."),
    "dequant": ("F32", "The numbers of quantised blocks."),
}

STEPS: dict[str, Step] = {
    step.name: step
    for step in (
        *(
            _step("one", function)
            for function in (
                moves.reshape, moves.squeeze, moves.unsqueeze, moves.flatten, moves.transpose,
                moves.permute, moves.slice_, moves.index, moves.take, moves.flip, moves.broadcast,
                moves.pad, moves.unpad, model_moves.rope_half_to_interleaved,
                model_moves.rope_interleaved_to_half, model_moves.heads, model_moves.unqkv,
                model_moves.ungate_up,
            )
        ),
        *(
            _step("many", function)
            for function in (moves.concat, moves.stack, model_moves.qkv, model_moves.gate_up)
        ),
        *(
            Step(name, "value", f"{name}({_VALUE_DOCS[name][0]})", _VALUE_DOCS[name][1])
            for name in MOVES
        ),
    )
}  # fmt: skip


def check_call(call: Call, where: str) -> Step:
    """The step that is called, if its arguments fit in number and in name.

    Raises: UsageError if there is no such step, or they do not.
    """
    step = STEPS.get(call.name)
    if step is None:
        raise UsageError(
            f"{where}: expected a known step, got {call.name!r:.60} in {call.text!r:.120}",
            hint=f"{nearest(call.name, STEPS)}use one of {', '.join(STEPS)}",
        )
    if step.function is not None:
        _bind(step, call, where)
    elif unknown := {name for name, _ in call.options} - set(MOVES[call.name][2]):
        raise _misfit(step, call, f"the option {min(unknown)!r:.60}", where)
    elif len(call.args) != MOVES[call.name][1]:
        raise _misfit(step, call, f"{len(call.args)} arguments", where)
    return step


def names_of(call: Call) -> frozenset[str]:
    """The facts and captures that a step needs; words such as `BF16` are not among them.

    Raises: UsageError as `check_call`.
    """
    step = STEPS[call.name]
    if step.function is None:
        wanted = [tree for tree in call.args if not _is_word(tree)]
    else:
        bound = _bind(step, call, call.text)
        wanted = [tree for kind, tree in bound if not _is_named(kind, tree)]
    return frozenset().union(*(names_in(tree) for tree in wanted))


def apply(call: Call, arrays: Sequence[Array], context: Context) -> tuple[list[Array], str]:
    """The arrays after a step, and the step with its values in place of names, "" if it is none.

    A step of one array is done to each of them; a join makes one of all.
    Raises: UsageError if it does not fit them.
    """
    step = STEPS[call.name]
    if step.function is None:
        return _valued(call, arrays, context)
    found = [(tree, _argument(kind, tree, context, call)) for kind, tree in _bind(step, call, "")]
    values = {id(tree): value for tree, value in found}
    args = [values[id(tree)] for tree in call.args]
    options = {name: values[id(tree)] for name, tree in call.options}
    shown = [*map(spelled, args), *(f"{name}={spelled(v)}" for name, v in options.items())]
    text = f"{call.name}({', '.join(shown)})"
    if step.arity == "many":
        return [step.function(arrays, *args, **options)], text
    return [step.function(array, *args, **options) for array in arrays], text


def _valued(call: Call, arrays: Sequence[Array], context: Context) -> tuple[list[Array], str]:
    """As `apply`, for a step of values; a cast to the type that is there already is no step."""
    args = [_value_argument(tree, context, call) for tree in call.args]
    options = tuple((name, _value_argument(tree, context, call)) for name, tree in call.options)
    found = []
    text = ""
    for array in arrays:
        move = _move(call.name, array.element, options, *args)
        if call.name in ("cast", "widen") and move.source == move.target and not options:
            found.append(array)
            continue
        text = move.text
        found.append(replace(array, element=move.target, values=(*array.values, move)))
    return found, text


@lru_cache(maxsize=1 << 10, typed=True)
def _move(
    name: str, element: ElementType, options: tuple[tuple[str, object], ...], *args: object
) -> ValueMove:
    """One move for all leaves that are changed alike, as it may keep a table of all elements."""
    return value_move(name, element, args, dict(options))


def _value_argument(tree: ast.expr, context: Context, call: Call) -> object:
    if isinstance(tree, ast.Name) and (_is_word(tree) or tree.id not in context):
        return tree.id
    value = evaluate(tree, context, call.text)
    if isinstance(value, list):
        raise UsageError(
            f"{call.text}: expected a number or a word for {ast.unparse(tree):.60}, got a list",
            hint="check the facts and captures that the step uses",
        )
    return value


def _is_word(tree: ast.expr) -> bool:
    return isinstance(tree, ast.Name) and tree.id in ELEMENT_TYPES


def _bind(step: Step, call: Call, where: str) -> list[tuple[Any, ast.expr]]:
    """Each argument's tree with the kind that its parameter wants."""
    signature = inspect.Signature(step.parameters)
    try:
        bound = signature.bind(*call.args, **dict(call.options))
    except TypeError as error:
        raise _misfit(step, call, str(error), where) from error
    found: list[tuple[Any, ast.expr]] = []
    for parameter in step.parameters:
        if parameter.name not in bound.arguments:
            continue
        given = bound.arguments[parameter.name]
        trees = given if parameter.kind is parameter.VAR_POSITIONAL else [given]
        for tree in trees:
            _check_word(step, parameter.annotation, tree, call, where)
            found.append((parameter.annotation, tree))
    return found


def _check_word(step: Step, kind: Any, tree: ast.expr, call: Call, where: str) -> None:
    allowed = get_args(kind) if get_origin(kind) is Literal else ()
    if allowed and _word(tree) not in allowed:
        got = f"{ast.unparse(tree):.60}, where {', '.join(allowed)} is allowed"
        raise _misfit(step, call, got, where)


def _word(tree: ast.expr) -> str | None:
    if isinstance(tree, ast.Name):
        return tree.id
    return tree.value if isinstance(tree, ast.Constant) and isinstance(tree.value, str) else None


def _is_named(kind: Any, tree: ast.expr) -> bool:
    return get_origin(kind) is Literal and _word(tree) is not None


def _argument(kind: Any, tree: ast.expr, context: Context, call: Call) -> Any:
    if _is_named(kind, tree):
        return _word(tree)
    value = evaluate(tree, context, call.text)
    if kind is int and isinstance(value, int):
        return value
    if kind == float | str and not isinstance(value, list):
        return value
    if kind == Sequence[int] and isinstance(value, list) and all(type(v) is int for v in value):
        return value
    wanted = {int: "an integer", Sequence[int]: "a list of integers"}.get(kind, "a number")
    raise UsageError(
        f"{call.text}: expected {wanted} for {ast.unparse(tree):.60}, got {spelled(value):.60}",
        hint="check the facts and captures that the step uses",
    )


def _misfit(step: Step, call: Call, got: str, where: str) -> UsageError:
    return UsageError(
        f"{where}: expected {step.signature}, got {call.text!r:.120}: {got}",
        hint="mend the arguments of the step",
    )
