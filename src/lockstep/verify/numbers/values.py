"""What claims may do to values: casts, scales and the like, each of them specified to the bit.

`cast(TYPE, rounding=RNE, subnormals=keep, nan=keep, overflow=inf)`: see `rounding.Rules`.
`widen(TYPE, nan=raw)`: a cast that is refused unless TYPE holds every value.
`scale(c)`: exact for a power of two but for what leaves the range, which is rounded once; any other
factor is rounded to the type that `compute` names, and so is the product, then the element.
`add_one(compute=TYPE)`, `subtract_one(compute=TYPE)`, `negate()`: x + 1 and x - 1, rounded
likewise; the sign turned.
`exp()`: not exact; the library's function in float64, rounded once.
`dequant(F32)`: the numbers of GGML's blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from math import frexp, isfinite
from typing import Any

import numpy as np

from lockstep.errors import UsageError, nearest
from lockstep.formats.dequantise import SUPPORTED, dequantise
from lockstep.formats.leaf import ELEMENT_TYPES, ElementType
from lockstep.verify.claim import ValueMove, Words
from lockstep.verify.numbers.arithmetic import plus, power_of_two, times
from lockstep.verify.numbers.float_formats import FLOATS, FloatFormat, Numbers, decode
from lockstep.verify.numbers.integers import INTEGERS, holds_integer, integer_numbers, to_integer
from lockstep.verify.numbers.rounding import NEAREST, Rules, encode

BLOCK = 1 << 15  # elements at a time, so that what is on the way stays in the cache
TABLE_SHARE = 16  # a table costs the rule for all its rows: made for a sixteenth of them at once
E8M0 = "F8_E8M0"  # a scale: 2^(word - 127), 255 is NaN
BLOCKS = [name for name, element in SUPPORTED.items() if element.n_numbers > 1]
CANONICAL_NAN = 0x7FC00000


@dataclass(frozen=True)
class Move:
    """A value move: `rule` makes new words of old ones, and is looked up where words are short."""

    text: str
    source: ElementType
    target: ElementType
    rule: Callable[[Words], Words]
    exact: bool = True
    expands: int = 1

    def apply(self, words: Words) -> Words:
        """The new elements of a flat block; `expands` of them for each old one."""
        dtype = np.dtype(f"<u{self.target.n_bytes}")
        out = np.empty(len(words) * self.expands, dtype)
        for start in range(0, len(words), BLOCK):
            block = words[start : start + BLOCK]
            made = self._table[block] if self._is_looked_up(words) else self.rule(block)
            out[start * self.expands : (start + len(block)) * self.expands] = made
        return out

    def _is_looked_up(self, words: Words) -> bool:
        if words.ndim > 1 or words.itemsize > 2:
            return False
        return "_table" in self.__dict__ or TABLE_SHARE * len(words) >= 1 << 8 * words.itemsize

    @cached_property
    def _table(self) -> Words:
        dtype = np.dtype(f"<u{self.source.n_bytes}")
        return self.rule(np.arange(1 << (8 * dtype.itemsize), dtype=np.uint32).astype(dtype))


def value_move(
    name: str, element: ElementType, args: Sequence[object], options: Mapping[str, object]
) -> ValueMove:
    """The move of this name for elements of this type.

    Raises: UsageError if there is no such move, or it is not exactly specified for the type.
    """
    if name not in MOVES:
        raise UsageError(
            f"{name}: expected one of {', '.join(MOVES)}, got another name",
            hint="see docs/verify.md for the moves of values",
        )
    make, n_args, known = MOVES[name]
    if len(args) != n_args:
        raise UsageError(f"{name}: expected {n_args} arguments, got {len(args)}")
    for option in options:
        if option not in known:
            raise UsageError(
                f"{name}: expected only the options {', '.join(known) or '(none)'}, "
                f"got {option!r:.60}",
                hint=f"remove {option!r:.60}",
            )
    move: ValueMove = make(element, *args, **options)
    return move


# --- casts


def _cast(element: ElementType, to: object, **options: str) -> Move:
    target = _type("cast", to)
    if element.name in INTEGERS and target.name in INTEGERS:
        return _cast_integers(element, target, options)
    rules = Rules(**{"nan": "raw", **options} if element == target else options)
    read, form = _reader("cast", element), _form("cast", target)
    text = f"cast({target}, {rules.text})"
    plain = rules.subnormals == "keep" and rules.overflow == "inf"
    if (element.name, target.name) == ("F32", "BF16") and plain:
        return Move(text, element, target, partial(_upper_half, rules=rules))
    return Move(text, element, target, partial(_recode, read=read, form=form, rules=rules))


def _cast_integers(element: ElementType, target: ElementType, options: Mapping[str, str]) -> Move:
    overflow = options.get("overflow", "")
    if set(options) - {"overflow"} or overflow not in ("", "wrap", "saturate"):
        raise UsageError(
            f"cast({target}): expected only overflow=wrap or overflow=saturate from {element}, "
            f"got {', '.join(f'{k}={v}' for k, v in options.items())}"
        )
    if not overflow and not holds_integer(target.name, element.name):
        raise UsageError(
            f"cast({target}): expected a type that holds every {element}, got {target}",
            hint="write overflow=wrap or overflow=saturate, if that is what was done",
        )
    text = f"cast({target}{f', overflow={overflow}' if overflow else ''})"
    rule = partial(to_integer, source=element.name, target=target.name, overflow=overflow)
    return Move(text, element, target, rule)


def _widen(element: ElementType, to: object, nan: str = "raw") -> Move:
    target = _type("widen", to)
    if element.name in INTEGERS and target.name in INTEGERS:
        fits = holds_integer(target.name, element.name)
    else:
        form = _form("widen", target)
        fits = _fits(element, form)
    if not fits:
        raise UsageError(
            f"widen({target}): expected a type that holds every {element}, got {target}",
            hint=f"use cast({target}), which says how values are rounded",
        )
    if target.name in INTEGERS:
        rule = partial(to_integer, source=element.name, target=target.name, overflow="")
        return Move(f"widen({target})", element, target, rule)
    rules = Rules(nan=nan)
    read = _reader("widen", element)
    text = f"widen({target}, nan={nan})" if element.name in FLOATS else f"widen({target})"
    return Move(text, element, target, partial(_recode, read=read, form=form, rules=rules))


def _fits(element: ElementType, form: FloatFormat) -> bool:
    if element.name in FLOATS:
        return form.holds(FLOATS[element.name])
    if element.name in INTEGERS:
        sign, n_bits = INTEGERS[element.name]
        return n_bits - sign <= form.n_mantissa + 1 and n_bits - sign <= form.bias
    return element.name == E8M0 and form.n_mantissa >= 7 and form.bias >= 127


def _recode(
    words: Words, read: Callable[[Words], Numbers], form: FloatFormat, rules: Rules
) -> Words:
    numbers = read(words)
    if rules.subnormals == "flush" and isinstance(read, partial) and read.func is decode:
        source: FloatFormat = read.keywords["form"]
        numbers.significand[numbers.exponent < 1 - source.bias] = 0
    return encode(numbers, form, rules)


def _upper_half(words: Words, rules: Rules) -> Words:
    """F32 to BF16, ten times as fast: the carry out of the lower half rounds, up to infinity.

    Whatever is NaN goes the long way.
    """
    wide = words.astype(np.uint32, copy=False)
    upper = wide >> np.uint32(16)
    if rules.rounding == "RNE":
        upper = (wide + (np.uint32(0x7FFF) + (upper & np.uint32(1)))) >> np.uint32(16)
    made = upper.astype("<u2")
    nan = np.flatnonzero((wide & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000))
    if nan.size:
        made[nan] = encode(decode(wide[nan], FLOATS["F32"]), FLOATS["BF16"], rules)
    return made


def _scale_numbers(words: Words) -> Numbers:
    """The numbers of F8_E8M0 words."""
    n = len(words)
    none = np.zeros(n, np.bool_)
    return Numbers(
        negative=none,
        exponent=words.astype(np.int64) - 127,
        significand=np.full(n, 1 << 62, np.uint64),
        nan=words == 255,
        infinite=none,
        payload=np.zeros(n, np.uint64),
    )


def _reader(move: str, element: ElementType) -> Callable[[Words], Numbers]:
    """What decodes the words of a type."""
    if element.name in FLOATS:
        return partial(decode, form=FLOATS[element.name])
    if element.name in INTEGERS:
        return partial(integer_numbers, name=element.name)
    if element.name == E8M0:
        return _scale_numbers
    raise UsageError(
        f"{move}: expected elements of {', '.join(FLOATS)}, {E8M0} or integers, got {element}",
        hint="dequantise blocks with dequant(F32); compare other types by their bits",
    )


def _type(move: str, name: object) -> ElementType:
    if not isinstance(name, str) or name not in ELEMENT_TYPES:
        raise UsageError(
            f"{move}: expected the name of a type such as BF16, got {name!r:.60}",
            hint=f"{nearest(str(name), ELEMENT_TYPES)}use one of {', '.join(ELEMENT_TYPES)}",
        )
    return ELEMENT_TYPES[name]


def _form(move: str, element: ElementType) -> FloatFormat:
    if element.name not in FLOATS:
        raise UsageError(
            f"{move}: expected one of {', '.join(FLOATS)}, got {element}",
            hint="only casts to floating point, and among integers, are specified to the bit",
        )
    return FLOATS[element.name]


# --- arithmetic


def _scale(element: ElementType, factor: object, compute: str = "") -> Move:
    form = _form("scale", element)
    if not isinstance(factor, (int, float)) or not isfinite(factor) or factor == 0:
        raise UsageError(f"scale: expected a finite number that is not 0, got {factor!r:.60}")
    mantissa, exponent = frexp(factor)
    if abs(mantissa) == 0.5 and not compute:
        rule = partial(_scaled, form=form, power=exponent - 1, negative=factor < 0)
        return Move(f"scale({factor!r})", element, element, rule)
    step = _compute("scale", element, compute)
    constant = _constant(factor, step)
    rule = partial(_computed, form=form, step=step, operation=times, constant=constant)
    return Move(f"scale({factor!r}, compute={step.name})", element, element, rule)


def _add_one(element: ElementType, compute: str = "") -> Move:
    form, step = _form("add_one", element), _compute("add_one", element, compute)
    rule = partial(_computed, form=form, step=step, operation=plus, constant=_constant(1, step))
    return Move(f"add_one(compute={step.name})", element, element, rule)


def _subtract_one(element: ElementType, compute: str = "") -> Move:
    form, step = _form("subtract_one", element), _compute("subtract_one", element, compute)
    rule = partial(_computed, form=form, step=step, operation=plus, constant=_constant(-1, step))
    return Move(f"subtract_one(compute={step.name})", element, element, rule)


def _negate(element: ElementType) -> Move:
    if element.name in INTEGERS and INTEGERS[element.name][0]:
        return Move("negate()", element, element, np.negative)
    form = _form("negate", element)
    return Move("negate()", element, element, partial(_negated, form=form))


def _exp(element: ElementType) -> Move:
    form = _form("exp", element)
    return Move("exp(compute=F64)", element, element, partial(_exponential, form=form), exact=False)


def _compute(move: str, element: ElementType, name: object) -> FloatFormat:
    """The type in which a sum or product is rounded first: that of the elements, or as asked."""
    chosen = name or element.name
    if chosen not in (element.name, "F32", "F64") or chosen not in FLOATS:
        raise UsageError(
            f"{move}: compute: expected {element}, F32 or F64, got {chosen!r:.60}",
            hint="name the type in which the converter computed",
        )
    form = FLOATS[str(chosen)]
    if not form.holds(FLOATS[element.name]):
        raise UsageError(
            f"{move}: compute: expected a type that holds every {element}, got {form.name}",
            hint=f"cast({form.name}) first, then {move}",
        )
    return form


def _constant(value: float, form: FloatFormat) -> Numbers:
    """A Python number, rounded to the nearest in a format."""
    exact = decode(np.array([value], "<f8").view("<u8"), FLOATS["F64"])
    constant = decode(encode(exact, form), form)
    if constant.significand[0] == 0 or constant.nan[0] or constant.infinite[0]:
        raise UsageError(
            f"scale: expected a factor that {form.name} can hold, got {value!r}",
            hint="name a wider type with compute=",
        )
    return constant


def _computed(
    words: Words,
    form: FloatFormat,
    step: FloatFormat,
    operation: Callable[[Numbers, Numbers], Numbers],
    constant: Numbers,
) -> Words:
    """One operation rounded in `step`, then once more where the elements are of another type."""
    made = encode(operation(decode(words, form), constant), step)
    return made if step is form else encode(decode(made, step), form)


def _scaled(words: Words, form: FloatFormat, power: int, negative: bool) -> Words:
    numbers = power_of_two(decode(words, form), power)
    if negative:
        numbers.negative = numbers.negative ^ True
    return encode(numbers, form)


def _negated(words: Words, form: FloatFormat) -> Words:
    turned = words ^ words.dtype.type(form.sign)
    if form.ends == "fnuz":
        alone = (words & words.dtype.type(form.sign - 1)) == 0  # zero, and the NaN
        turned[alone] = words[alone]
    return turned


def _exponential(words: Words, form: FloatFormat) -> Words:
    wide = encode(decode(words, form), FLOATS["F64"], Rules(nan="raw"))
    with np.errstate(over="ignore", under="ignore"):
        result = np.exp(wide.view("<f8")).view("<u8")
    return encode(decode(result, FLOATS["F64"]), form, NEAREST)


# --- blocks


def _dequant(element: ElementType, to: object) -> Move:
    if element.name not in BLOCKS or to != "F32":
        raise UsageError(
            f"dequant: expected blocks of {', '.join(BLOCKS)} and the type F32, "
            f"got {element} and {to!r:.60}",
            hint="compare other blocks by their bytes, without dequant",
        )
    rule = partial(_numbers_of_blocks, name=element.name)
    target = ELEMENT_TYPES["F32"]
    return Move("dequant(F32)", element, target, rule, expands=element.n_numbers)


def _numbers_of_blocks(blocks: Words, name: str) -> Words:
    """The words of all numbers of some blocks; there is one NaN, whatever the processor makes."""
    n_bytes = SUPPORTED[name].n_bytes
    numbers = dequantise(blocks.reshape(-1, n_bytes).astype(np.uint8, copy=False), name)
    words = numbers.reshape(-1).view("<u4")
    words[np.isnan(numbers).reshape(-1)] = CANONICAL_NAN
    return words


MOVES: dict[str, tuple[Callable[..., Any], int, tuple[str, ...]]] = {
    "cast": (_cast, 1, ("rounding", "subnormals", "nan", "overflow")),
    "widen": (_widen, 1, ("nan",)),
    "scale": (_scale, 1, ("compute",)),
    "add_one": (_add_one, 0, ("compute",)),
    "subtract_one": (_subtract_one, 0, ("compute",)),
    "negate": (_negate, 0, ()),
    "exp": (_exp, 0, ()),
    "dequant": (_dequant, 1, ()),
}
