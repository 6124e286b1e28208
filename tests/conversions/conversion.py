"""What a made conversion is: a source, a target, and a way to write that target with a fault."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Tensors = dict[str, Array]


@dataclass(frozen=True)
class Scheme:
    """What the parts of a decoder are called in a target, `{l}` for the layer, and its counts.

    `rope` is how the rows of q and k lie in the target: "half", "interleaved", or "" where the
    conversion leaves them as they were.
    """

    embed: str
    attn_norm: str
    ffn_norm: str
    q: str
    k: str
    v: str
    o: str
    gate: str
    up: str
    layer: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    rope: str = ""
    mu: str = ""
    nu: str = ""
    step: str = ""


@dataclass(frozen=True)
class Conversion:
    """`tensors` are those of the target as they were written; `write` writes others like them."""

    claims: str
    source: Path
    target: Path
    tensors: Tensors
    write: Callable[[Tensors, Path], Path]
    scheme: Scheme

    def planted(self, fault: Callable[[Tensors, Scheme], Tensors], path: Path) -> Path:
        """A target with a fault in it, which really differs from the good one."""
        tensors = fault(dict(self.tensors), self.scheme)
        assert different(tensors, self.tensors), "the fault changed nothing"
        return self.write(tensors, path)


def different(a: Tensors, b: Tensors) -> list[str]:
    """The names under which two sets of tensors do not hold the same bits."""
    return sorted(name for name in a.keys() | b.keys() if not _same(a.get(name), b.get(name)))


def _same(a: Array | None, b: Array | None) -> bool:
    if a is None or b is None:
        return False
    return (a.shape, a.dtype, a.tobytes()) == (b.shape, b.dtype, b.tobytes())


def interleaved(w: Array, n_heads: int) -> Array:
    """Rows of each head from half split to interleaved, as llama.cpp's converter does it."""
    split = w.reshape(n_heads, 2, w.shape[0] // n_heads // 2, *w.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(w.shape)


def halved(w: Array, n_heads: int) -> Array:
    """Rows of each head from interleaved to half split, as transformers converts Meta's files."""
    split = w.reshape(n_heads, w.shape[0] // n_heads // 2, 2, *w.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(w.shape)
