"""What a leaf holds, beside being equal: a bitwise match of a broken leaf is still broken.

These are facts, never part of a verdict.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lockstep.formats.leaf import ElementType
from lockstep.verify.claim import Words
from lockstep.verify.numbers.float_formats import FLOATS, FloatFormat, special
from lockstep.verify.numbers.integers import INTEGERS
from lockstep.verify.numbers.numbers_text import as_float64, component, components

BLOCK = 1 << 15  # elements at a time


class Health:
    """Counts over one leaf, block by block. Those of parts merge to the same in any order.

    `low` and `high` are over finite numbers; integers keep their exact values.
    """

    def __init__(self, element: ElementType) -> None:
        self._element = element
        self._form = FLOATS.get(component(element))
        self.n = self.n_nan = self.n_infinite = self.n_zero = self.n_subnormal = 0
        self.low: float | int | None = None
        self.high: float | int | None = None
        self._word: int | None = None  # the word that all elements so far have; -1 if they differ

    @property
    def is_constant(self) -> bool:
        """Whether all elements, of which there are several, have the same bits."""
        return self.n > 1 and self._word is not None and self._word >= 0

    def add(self, words: Words) -> None:
        """Counts one block; quantised blocks and packed pairs have no such numbers."""
        known = self._form is not None or self._element.name in INTEGERS
        if not known:
            return
        flat = components(words.reshape(-1), self._element).reshape(-1)
        for start in range(0, len(flat), BLOCK):
            block = flat[start : start + BLOCK]
            self.n += len(block)
            first = int(block[0])
            self._same(first if bool((block == block[0]).all()) else -1)
            if self._form is not None:
                self._floats(block, self._form)
            else:
                self._integers(block)

    def merge(self, other: Health) -> None:
        """Adds what was counted over another part of the leaf."""
        for name in ("n", "n_nan", "n_infinite", "n_zero", "n_subnormal"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        if other._word is not None:
            self._same(other._word)
        if other.low is not None and other.high is not None:
            self._range(other.low, other.high)

    @property
    def text(self) -> str:
        """The facts in one line; empty where there are none."""
        if not self.n:
            return ""
        counts = {
            "NaN": self.n_nan,
            "infinite": self.n_infinite,
            "zero": self.n_zero,
            "subnormal": self.n_subnormal,
        }
        said = [f"{n} {name}" for name, n in counts.items() if n] or ["nothing special"]
        if self.low is not None:
            said.append(f"from {self.low!r} to {self.high!r}")
        if self.is_constant:
            said.append("constant")
        return ", ".join(said)

    def _same(self, word: int) -> None:
        self._word = word if self._word in (None, word) else -1

    def _range(self, low: float | int, high: float | int) -> None:
        self.low = low if self.low is None else min(self.low, low)
        self.high = high if self.high is None else max(self.high, high)

    def _floats(self, words: Words, form: FloatFormat) -> None:
        nan, infinite = special(words, form)
        magnitude = words & words.dtype.type(form.sign - 1)
        below = magnitude < (1 << form.n_mantissa)
        zero = (magnitude == 0) & ~nan
        self.n_nan += int(np.count_nonzero(nan))
        self.n_infinite += int(np.count_nonzero(infinite))
        self.n_zero += int(np.count_nonzero(zero))
        self.n_subnormal += int(np.count_nonzero(below & ~zero & ~nan))
        finite: NDArray[np.bool_] = ~(nan | infinite)
        if finite.any():
            values = as_float64(words[finite], form)
            self._range(float(values.min()), float(values.max()))

    def _integers(self, words: Words) -> None:
        signed = INTEGERS[self._element.name][0]
        values = words.view(f"<{'i' if signed else 'u'}{words.itemsize}")
        self.n_zero += int(np.count_nonzero(values == 0))
        self._range(int(values.min()), int(values.max()))
