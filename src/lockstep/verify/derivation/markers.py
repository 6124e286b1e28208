"""Elements that say which they are: ids written in digits that the narrowest type holds exactly.

Every element of the source that can be marked has an id. Each run of the converter has one digit of
each id as the value of the element. Ids are spread over a prime first, so that no two leaves are
alike in any run and rows are in no order: a converter that looks at values sees nothing special.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockstep.formats.leaf import ElementType, Leaf
from lockstep.formats.overwrite import why_not_writable
from lockstep.verify.claim import Words
from lockstep.verify.numbers.float_formats import FLOATS, decode
from lockstep.verify.numbers.integers import INTEGERS
from lockstep.verify.numbers.numbers_text import as_float64
from lockstep.verify.numbers.rounding import Rules, encode

Numbers64 = NDArray[np.float64]
Ids = NDArray[np.int64]

LOWEST = 2  # padding with zeros or ones is no digit
FILLED = 3 / 4  # of the codes are ids at most, so that what is no marker seldom spells one
# Every integer up to here is exact, with one added too; BF16 may be on the way of any.
_HIGHEST = {"F8_E4M3": 14, "F8_E4M3FNUZ": 14, "F8_E5M2": 7, "F8_E5M2FNUZ": 7, "I8": 126, "U8": 126}
_HIGHEST_ELSE = 250
MARKED = (FLOATS.keys() | INTEGERS.keys()) - {"BOOL"}
MOST_ELEMENTS = 1 << 24  # of a template: tiny models have thousands, and each run writes them all


def highest_digit(elements: Iterable[ElementType]) -> int:
    """The largest digit that all of these types hold."""
    return min((_HIGHEST.get(e.name, _HIGHEST_ELSE) for e in elements), default=_HIGHEST_ELSE)


def why_not_marked(leaf: Leaf) -> str:
    """Why a leaf gets no markers; "" if it does."""
    reason = why_not_writable(leaf)
    if not reason and leaf.element.name not in MARKED:
        reason = f"elements of {leaf.element} hold no digits"
    return reason


@dataclass(frozen=True)
class Code:
    """How ids below `n_ids` are written in `n_digits` digits from LOWEST to `highest`."""

    n_ids: int
    highest: int
    n_digits: int
    prime: int
    factor: int

    @classmethod
    def of(cls, n_ids: int, highest: int, rng: np.random.Generator) -> Code:
        """The shortest code with room for so many ids."""
        base, n_digits = highest - LOWEST + 1, 2
        while base**n_digits * FILLED < n_ids + base:
            n_digits += 1
        prime = _prime_below(min(base**n_digits, 1 << 31))  # products of two fit 64 bits
        return cls(n_ids, highest, n_digits, prime, int(rng.integers(prime // 3, 2 * prime // 3)))

    @property
    def base(self) -> int:
        """How many digits there are."""
        return self.highest - LOWEST + 1

    def digit(self, ids: Ids, i: int) -> Numbers64:
        """Digit `i` of the ids, as the value that marks them."""
        code = (ids + 1) * self.factor % self.prime
        values: Numbers64 = (code // self.base**i % self.base + LOWEST).astype(np.float64)
        return values

    def ids(self, digits: Numbers64) -> Ids:
        """The ids that values of all runs spell, -1 where they spell none.

        Shapes: digits (n_digits, n) -> ids (n,)
        """
        with np.errstate(invalid="ignore"):
            whole = np.where(np.isfinite(digits), digits, 0).astype(np.int64)
            valid = (whole == digits) & (whole >= LOWEST) & (whole <= self.highest)
        powers = self.base ** np.arange(self.n_digits, dtype=np.int64)
        code = ((whole - LOWEST) * powers[:, None]).sum(axis=0)
        fits = valid.all(axis=0) & (code < self.prime)
        back = pow(self.factor, -1, self.prime)
        ids = np.where(fits, code, 0) * back % self.prime - 1
        return np.where(fits & (ids >= 0) & (ids < self.n_ids), ids, -1)


def _prime_below(n: int) -> int:
    """The largest prime up to n."""
    while any(n % k == 0 for k in range(2, int(n**0.5) + 1)):
        n -= 1
    return n


class Numbering:
    """Which ids the elements of the marked leaves have: one leaf after the other, in C order."""

    def __init__(self, leaves: Mapping[str, Leaf]) -> None:
        self.leaves = dict(leaves)
        self.names = list(leaves)
        counts = [leaf.n_elements for leaf in leaves.values()]
        self.starts: Ids = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)
        self.n_ids = int(self.starts[-1])

    def of(self, name: str) -> Ids:
        """The ids of a leaf."""
        i = self.names.index(name)
        return np.arange(self.starts[i], self.starts[i + 1], dtype=np.int64)

    def owners(self, ids: Ids) -> tuple[NDArray[np.int64], Ids]:
        """The number of the leaf of each id, and the flat place in it; -1 where there is no id."""
        owner = np.searchsorted(self.starts, ids, side="right") - 1
        owner = np.where(ids < 0, -1, owner)
        return owner, np.where(ids < 0, -1, ids - self.starts[owner])


# --- values and words


def to_words(values: Numbers64, element: ElementType) -> Words:
    """Numbers as elements of a type, rounded once."""
    if element.name in INTEGERS:
        sign, n_bits = INTEGERS[element.name]
        kind = f"<{'i' if sign else 'u'}{n_bits // 8}"
        return values.astype(kind).view(f"<u{n_bits // 8}")
    wide = decode(np.ascontiguousarray(values, "<f8").view("<u8"), FLOATS["F64"])
    return encode(wide, FLOATS[element.name])


def to_numbers(words: Words, element: ElementType) -> Numbers64 | None:
    """Elements as numbers; None for a type that is none."""
    if element.name in INTEGERS:
        sign, n_bits = INTEGERS[element.name]
        return words.view(f"<{'i' if sign else 'u'}{n_bits // 8}").astype(np.float64)
    if element.name not in FLOATS:
        return None
    with np.errstate(invalid="ignore"):
        return as_float64(words, FLOATS[element.name])


def random_words(leaf: Leaf, rng: np.random.Generator) -> Words:
    """Independent values over several binades, of both signs; integers are small and positive."""
    n = leaf.n_elements
    if leaf.element.name in INTEGERS:
        return to_words(rng.integers(LOWEST, 120, n).astype(np.float64), leaf.element)
    return to_words(rng.standard_normal(n) * 2.0 ** rng.integers(-4, 5, n), leaf.element)


def edge_words(leaf: Leaf, rng: np.random.Generator) -> Words:
    """Random values with one in three a zero, a tie, too small or too large for a narrower type,
    infinite or NaN."""
    words = random_words(leaf, rng)
    if leaf.element.name not in FLOATS:
        return words
    form = FLOATS[leaf.element.name]
    wide = np.array(_EDGES, "<f8").view("<u8")
    edges = encode(decode(wide, FLOATS["F64"]), form, Rules(nan="raw"))
    nans = [form.largest + 2 + i for i in range(3)] if form.n_bytes > 1 else []
    table: NDArray[Any] = np.concatenate([edges, np.array(nans, form.dtype)]).astype(form.dtype)
    table = np.concatenate([table, table ^ form.dtype.type(form.sign)])
    chosen = rng.random(len(words)) < 1 / 3
    words = words.copy()
    words[chosen] = table[rng.integers(0, len(table), int(chosen.sum()))]
    return words


_EDGES = (
    0.0, 1.00390625, 1.01171875, 1.00048828125, 1.00146484375, 1.0625, 1.1875,  # ties
    2.0**-24, 2.0**-20, 2.0**-130, 2.0**-145, 1.5 * 2.0**-10, 2.0**-9,  # subnormal in some type
    465.0, 449.0, 65520.0, 65519.0, 6e4, 1e6, 3.4e38, float("inf"), float("nan"),
)  # fmt: skip
