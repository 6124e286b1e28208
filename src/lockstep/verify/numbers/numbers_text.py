"""Words as numbers: in float64, block by block, and as text for people."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockstep.formats.leaf import ElementType
from lockstep.verify.claim import Words
from lockstep.verify.numbers.float_formats import FLOATS, FloatFormat, decode, special
from lockstep.verify.numbers.integers import INTEGERS
from lockstep.verify.numbers.rounding import Rules, encode

COMPLEX = {"C64": "F32", "C128": "F64"}


def component(element: ElementType) -> str:
    """The type of the numbers that an element is made of: that of a part, where it is complex."""
    return COMPLEX.get(element.name, element.name)


def components(words: Words, element: ElementType) -> Words:
    """The words of the parts of complex elements, as rows of two; others as they are."""
    if element.name not in COMPLEX:
        return words
    part = np.dtype(f"<u{element.n_bytes // 2}")
    return np.ascontiguousarray(words).view(part).reshape(-1, 2)


def as_float64(words: Words, form: FloatFormat) -> NDArray[np.float64]:
    """The numbers of words that are not signalling NaNs, exactly."""
    if form.n_bytes == 1:
        return _short_table(form)[words]
    if form.name == "BF16":
        return (words.astype("<u4") << np.uint32(16)).view("<f4").astype(np.float64)
    return words.astype(form.dtype, copy=False).view(f"<f{form.n_bytes}").astype(np.float64)


@lru_cache
def _short_table(form: FloatFormat) -> NDArray[np.float64]:
    wide = encode(decode(np.arange(256, dtype=np.uint8), form), FLOATS["F64"], Rules())
    return wide.view("<f8")


def bits_text(words: Any) -> str:
    """The bits of one element: a number in hexadecimal, or the bytes of a block in their order."""
    flat = np.atleast_1d(words)
    if flat.size == 1:
        return f"0x{int(flat[0]):0{2 * flat.itemsize}x}"
    return flat.tobytes().hex()


def value_text(words: Any, element: ElementType) -> str:
    """The value of one element for a person; blocks have none."""
    flat = np.atleast_1d(words)
    if element.name in COMPLEX:
        form = FLOATS[component(element)]
        real, imaginary = components(flat, element)[0]
        return f"({_float_text(real, form)}, {_float_text(imaginary, form)})"
    if element.name in FLOATS:
        return _float_text(flat[0], FLOATS[element.name])
    if element.name in INTEGERS:
        signed = INTEGERS[element.name][0]
        return str(int(flat.view(f"<{'i' if signed else 'u'}{flat.itemsize}")[0]))
    if element.name == "F8_E8M0":
        return "nan" if flat[0] == 255 else f"2**{int(flat[0]) - 127}"
    return "block" if element.n_numbers > 2 else "packed"


def _float_text(word: Any, form: FloatFormat) -> str:
    words = np.array([word], form.dtype)
    nan, _ = special(words, form)
    if nan[0]:
        quiet = not form.quiet or int(word) & form.quiet
        sign = "-" if form.ends != "fnuz" and int(word) & form.sign else ""
        return f"{sign}nan" if quiet else f"{sign}nan (signalling)"
    if form.name == "F32":
        return str(words.view("<f4")[0])
    return repr(float(as_float64(words, form)[0]))
