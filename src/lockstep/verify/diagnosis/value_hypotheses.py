"""What may have happened to values: rounded, flushed, scaled, negated, turned byte by byte."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np

from lockstep.formats.leaf import ElementType
from lockstep.verify.claim import ValueMove, Words
from lockstep.verify.diagnosis.factor_hypotheses import factor_hypotheses
from lockstep.verify.diagnosis.hypotheses import (
    Case,
    Hypothesis,
    before_casts,
    move_or_none,
    value_places,
)
from lockstep.verify.layouts.layout import filled
from lockstep.verify.numbers.arithmetic import plus
from lockstep.verify.numbers.float_formats import FLOATS, FloatFormat, decode
from lockstep.verify.numbers.integers import INTEGERS, integer_numbers
from lockstep.verify.numbers.numbers_text import as_float64, value_text
from lockstep.verify.numbers.rounding import encode
from lockstep.verify.numbers.values import Move

NARROW = ("F32", "BF16", "F16", "F8_E4M3", "F8_E5M2")
LEAST_SHARE = 64  # a factor changes more than one in so many elements: all but zeros

Found = Iterator[tuple[str, str, tuple[ValueMove, ...]]]


def constant_hypotheses(case: Case) -> Iterator[Hypothesis]:
    """One value everywhere."""
    if case.target.element.n_numbers != 1 or case.target.element.n_bytes not in (1, 2, 4, 8):
        return
    word = case.found(0, 1)
    layout = filled(word.tobytes(), case.layout.shape)
    claim = replace(case.with_layout(layout), values=(), sources=())
    value = value_text(word, case.target.element)
    name, text = ("constant", f"{value} everywhere") if word.any() else ("zeros", "all zeros")
    yield Hypothesis(name, text, claim)


def value_hypotheses(case: Case) -> Iterator[Hypothesis]:
    """Changes of every element, the simple ones first."""
    if not case.is_simple:
        return
    target = case.target.element
    makers: list[Callable[[Case], Found]] = []
    if target.name in FLOATS:
        makers = [_left_out, _roundings, _signs, _ones]
    elif target.name in INTEGERS:
        makers = [_left_out, _integers]
    for make in (*makers, _bytes):
        for name, text, moves in make(case):
            yield Hypothesis(name, text, case.with_values(*moves))
    few = case.differs_in_less_than(case.layout.n_elements // LEAST_SHARE)
    if target.name in FLOATS and not few:
        yield from factor_hypotheses(case)


def _left_out(case: Case) -> Found:
    """Declared moves that were not made."""
    moves = case.claim.values
    for i, move in enumerate(moves):
        if move.source == move.target:
            rest = (*moves[:i], *moves[i + 1 :])
            yield "move_left_out", f"{move.text} was not done", rest
    if moves and moves[0].source == moves[-1].target:
        yield "moves_left_out", "no change of value was done", ()


# --- rounding


def _roundings(case: Case) -> Found:
    """Another path from the type of the source to that of the target."""
    before, element = before_casts(case)
    target = case.target.element
    if element.name not in FLOATS:
        return
    seen = {tuple(move.text for move in case.claim.values)}
    for name, text, chain in _paths(element, target):
        moves: list[ValueMove] = []
        for move_name, to, options in chain:
            at = moves[-1].target if moves else element
            move = move_or_none(move_name, at, to, **options)
            if move is not None:
                moves.append(move)
        path = (*before, *moves)
        if len(moves) == len(chain) and tuple(m.text for m in path) not in seen:
            yield name, text, path


Chain = list[tuple[str, str, dict[str, object]]]


def _paths(element: ElementType, target: ElementType) -> Iterator[tuple[str, str, Chain]]:
    narrower = FLOATS[target.name].n_mantissa < FLOATS[element.name].n_mantissa
    for name in NARROW:
        if name in (element.name, target.name):
            continue
        if FLOATS[name].n_mantissa < FLOATS[element.name].n_mantissa:
            twice = narrower and FLOATS[name].n_mantissa > FLOATS[target.name].n_mantissa
            kind = "double_rounded" if twice else "rounded"
            text = f"rounded to {name}" + (f" first, then to {target}" if twice else "")
            yield kind, text, [("cast", name, {}), ("cast", target.name, {})]
            text = f"cut to {name}, rounded toward zero"
            yield (
                "truncated",
                text,
                [("cast", name, {"rounding": "RTZ"}), ("cast", target.name, {})],
            )
    plain = f"cast to {target}" if element != target else "kept"
    if narrower:
        text = f"cast({target}) was rounded toward zero"
        yield "truncated", text, [("cast", target.name, {"rounding": "RTZ", "nan": "raw"})]
        text = f"{plain}, too large numbers made the largest"
        yield "saturated", text, [("cast", target.name, {"overflow": "saturate"})]
    for flushed in dict.fromkeys((element.name, target.name)):
        text = f"{plain}, with subnormal numbers of {flushed} made zero"
        chain: Chain = [("cast", flushed, {"subnormals": "flush"})]
        if flushed != target.name:
            chain.append(("cast", target.name, {}))
        yield "subnormals_flushed", text, chain
        if element.name == "F32" and target.name == "F32":
            chain = [("cast", "BF16", {"subnormals": "flush"}), ("cast", "F32", {})]
            text = "rounded to BF16, with subnormal numbers made zero"
            yield "rounded_and_flushed", text, chain
    for rule in ("keep", "raw", "sign", "canonical", "ones", "all_ones"):
        text = f"{plain}, with NaN written by the rule nan={rule}"
        yield "nan_rule", text, [("cast", target.name, {"nan": rule})]


# --- signs, ones, integers, bytes


def _signs(case: Case) -> Found:
    element = case.target.element
    form = FLOATS[element.name]
    negate = move_or_none("negate", element)
    if negate is not None:
        yield "sign_flipped", "with the sign turned", (*case.claim.values, negate)
    if form.ends != "fnuz":
        rule = partial(_without_negative_zero, sign=form.sign)
        positive = Move("zeros positive", element, element, rule)
        yield "zero_sign", "negative zeros made positive", (*case.claim.values, positive)
        sign_only = Move("zeros", element, element, partial(_only_sign, sign=form.sign))
        text = "all zeros, with the signs of what is claimed"
        yield "zeros", text, (*case.claim.values, sign_only)


def _without_negative_zero(words: Words, sign: int) -> Words:
    return np.where(words == sign, words.dtype.type(0), words)


def _only_sign(words: Words, sign: int) -> Words:
    return words & words.dtype.type(sign)


def _ones(case: Case) -> Found:
    for before, element, casts, said in value_places(case):
        for compute in dict.fromkeys((element.name, "F32")):
            add = move_or_none("add_one", element, compute=compute)
            if add is not None and FLOATS[compute].n_mantissa >= FLOATS[element.name].n_mantissa:
                rule = partial(_less_one, form=FLOATS[element.name], step=FLOATS[compute])
                less = Move(f"minus one, in {compute}", element, element, rule)
                yield "one_added", f"with 1 added{said}", (*before, add, *casts)
                yield "one_subtracted", f"with 1 subtracted{said}", (*before, less, *casts)


def _less_one(words: Words, form: FloatFormat, step: FloatFormat) -> Words:
    one = decode(np.array([-1.0], "<f8").view("<u8"), FLOATS["F64"])
    made = encode(plus(decode(words, form), one), step)
    return made if step is form else encode(decode(made, step), form)


def _integers(case: Case) -> Found:
    element = case.target.element
    moves = case.claim.values
    for name in ("F32", "BF16", "F16"):
        if INTEGERS[element.name][1] - 1 > FLOATS[name].n_mantissa:
            rule = partial(_through_float, element=element.name, form=FLOATS[name])
            move = Move(f"through {name}", element, element, rule)
            yield "through_float", f"passed through {name}", (*moves, move)
    n_bits = INTEGERS[element.name][1]
    for by in (1, -1, 1 << (n_bits - 1)):
        add = Move(f"plus {by}", element, element, partial(_plus_integer, by=by % (1 << n_bits)))
        name = "zero_point" if abs(by) == 1 else "offset"
        yield name, f"with {by} added to every integer", (*moves, add)


def _plus_integer(words: Words, by: int) -> Words:
    return words + words.dtype.type(by)


def _through_float(words: Words, element: str, form: FloatFormat) -> Words:
    """Integers rounded to a float and back; what no longer fits becomes the nearest that does."""
    values = as_float64(encode(integer_numbers(words, element), form), form)
    signed, n_bits = INTEGERS[element]
    kind = f"<{'i' if signed else 'u'}{n_bits // 8}"
    info = np.iinfo(kind)
    inside = (values > float(info.min)) & (values < float(info.max))
    made = np.where(values < 0, np.array(info.min, kind), np.array(info.max, kind))
    made[inside] = values[inside].astype(kind)
    made[values == float(info.min)] = info.min
    return made.view(words.dtype)


def _bytes(case: Case) -> Found:
    element = case.target.element
    if element.n_bytes > 1:
        swap = Move("bytes turned", element, element, np.ndarray.byteswap)
        text = "byte-swapped: written in the other byte order"
        yield "byte_swapped", text, (*case.claim.values, swap)
