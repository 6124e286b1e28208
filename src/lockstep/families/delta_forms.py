"""In which form files keep the parameters of a delta rule and of the convolution before it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lockstep.families.form import AS_IS, Form
from lockstep.ir import Array


@dataclass(frozen=True, slots=True)
class Taps(Form):
    """A convolution whose taps are (taps, channels) here and (channels, 1, taps) in a file.

    `between` says whether the file has the axis of length one; GGUF drops it.
    """

    between: bool

    def shape(self, held: tuple[int, ...]) -> tuple[int, ...]:
        """Channels first."""
        taps, channels = held
        return (channels, 1, taps) if self.between else (channels, taps)

    def held(self, stored: Array) -> Array:
        """Taps first, so that channels lie side by side."""
        return stored.reshape(len(stored), -1).T

    def stored(self, held: Array) -> Array:
        """Channels first."""
        return np.ascontiguousarray(held.T).reshape(self.shape(held.shape))

    def row_order(self, n_rows: int) -> Array | None:
        """None."""
        return None


@dataclass(frozen=True, slots=True)
class Logarithm(Form):
    """A rate of decay whose logarithm is trained, and that GGUF keeps as -e^x.

    Source: llama.cpp convert_hf_to_gguf.py, `A_log`.
    """

    def fault(self, stored: Array) -> str:
        """The first number that is no rate of decay, such as a logarithm that was left as it is."""
        wrong = stored[stored >= 0]
        rule = "expected negative numbers, because converters write -exp(A_log)"
        return f"{rule}, got {wrong[0]:g}" if wrong.size else ""

    def held(self, stored: Array) -> Array:
        """The logarithm; NaN of what is no rate of decay."""
        with np.errstate(invalid="ignore", divide="ignore"):
            logarithm: Array = np.log(-stored.astype(np.float64))
        return logarithm

    def stored(self, held: Array) -> Array:
        """-e^x."""
        return (-np.exp(held.astype(np.float64))).astype(held.dtype)

    def row_order(self, n_rows: int) -> Array | None:
        """None."""
        return None


@dataclass(frozen=True, slots=True)
class ValueHeads(Form):
    """Value heads in the other order: neighbours share a key head, or every n-th head does.

    A head is `width` elements of an axis of what `inner` gives, from `first` on. `tiles` says that
    the file has the tiled order and we the grouped one; else it is the other way round.
    Source: llama.cpp conversion/qwen.py, `_reorder_v_heads`.
    """

    key_heads: int
    per_key: int
    width: int
    tiles: bool
    first: int = 0
    axis: int = 0
    inner: Form = AS_IS

    def shape(self, held: tuple[int, ...]) -> tuple[int, ...]:
        """That of the inner form."""
        return self.inner.shape(held)

    def held(self, stored: Array) -> Array:
        """Our order from the file's."""
        array = self.inner.held(stored)
        return array.take(self._order(array.shape[self.axis], not self.tiles), self.axis)

    def fault(self, stored: Array) -> str:
        """That of the inner form."""
        return self.inner.fault(stored)

    def stored(self, held: Array) -> Array:
        """The file's order from ours."""
        order = self._order(held.shape[self.axis], self.tiles)
        return self.inner.stored(held.take(order, self.axis))

    def row_order(self, n_rows: int) -> Array | None:
        """The file's rows, head by head in our order, where rows are all that moves."""
        if self.axis or self.inner != AS_IS:
            return None
        return self._order(n_rows, not self.tiles)

    def _order(self, size: int, to_tiled: bool) -> Array:
        """Where each element of the wanted order stands in the other one."""
        heads = np.arange(self.first, size).reshape(-1, self.width)
        first = (self.key_heads, self.per_key) if to_tiled else (self.per_key, self.key_heads)
        moved = heads.reshape(*first, self.width).swapaxes(0, 1).reshape(-1)
        return np.concatenate([np.arange(self.first), moved])
