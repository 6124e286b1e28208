"""The weight table: every parameter of a model with its shape and its name in each file format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from lockstep.errors import InputError
from lockstep.ir import Array

Scheme = Literal["hf", "gguf"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """One parameter: our id, its shape, and what files call it.

    `decay` says whether weight decay applies: to matrices, not to gains and biases. `gguf_heads` is
    the number of heads whose rows GGUF stores interleaved for rope, 0 where it stores them as is.
    """

    id: str
    shape: tuple[int, ...]
    hf: str
    gguf: str
    decay: bool
    gguf_heads: int = 0

    def name(self, scheme: Scheme) -> str:
        """What a file of this kind calls the weight."""
        return self.hf if scheme == "hf" else self.gguf


class Table:
    """A weight table under construction; names are given without their endings."""

    def __init__(self) -> None:
        self.weights: list[Weight] = []
        self._prefix = ("", "", "")

    def under(self, id: str, hf: str, gguf: str) -> Table:
        """The same table, with these beginnings before all names."""
        table = Table()
        table.weights = self.weights
        table._prefix = (f"{id}.", f"{hf}.", f"{gguf}.")
        return table

    def gain(self, id: str, width: int, hf: str, gguf: str) -> None:
        """Adds the gain of a norm."""
        self._put("weight", (width,), (id, hf, gguf))

    def linear(
        self,
        id: str,
        shape: tuple[int, int],
        hf: str,
        gguf: str,
        *,
        bias: bool = False,
        gguf_heads: int = 0,
    ) -> None:
        """Adds the matrix of a linear, and its bias if it has one."""
        self._put("weight", shape, (id, hf, gguf), gguf_heads)
        if bias:
            self._put("bias", shape[:1], (id, hf, gguf), gguf_heads)

    def _put(
        self, end: str, shape: tuple[int, ...], names: tuple[str, str, str], gguf_heads: int = 0
    ) -> None:
        id, hf, gguf = (f"{p}{n}.{end}" for p, n in zip(self._prefix, names, strict=True))
        decay = len(shape) > 1
        self.weights.append(
            Weight(id=id, shape=shape, hf=hf, gguf=gguf, decay=decay, gguf_heads=gguf_heads)
        )


class TensorSource(Protocol):
    """A file or a folder of tensors: what is in it, and one of them at a time."""

    @property
    def where(self) -> str:
        """What to call it in a message."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of each tensor, without reading it."""

    @property
    def stored(self) -> Mapping[str, str]:
        """The type that each tensor is stored in, such as BF16 or Q4_K."""

    def read(self, name: str) -> Array:
        """One tensor as float32."""

    def raw(self, name: str) -> Array:
        """The bytes of one tensor as they are stored, read-only.

        Shapes: (rows, bytes of a row)
        """


def read_parameters(
    weights: tuple[Weight, ...],
    source: TensorSource,
    scheme: Scheme,
    copies: Mapping[str, str] | None = None,
) -> dict[str, Array]:
    """The parameters by our id, in the order of the table.

    `copies` names tensors that the file may hold besides: each must equal, bit for bit, the tensor
    that it is said to be a copy of.

    Raises: InputError naming every tensor that is missing, extra, of another shape or not finite.
    """
    copies = {k: v for k, v in (copies or {}).items() if k in source.shapes}
    _refuse(source.where, list(_differences(weights, source.shapes, scheme, copies)))
    parameters = {}
    for weight in weights:
        array_f32 = np.ascontiguousarray(source.read(weight.name(scheme)), dtype=np.float32)
        if scheme == "gguf" and weight.gguf_heads:
            array_f32 = split_pairs(array_f32, weight.gguf_heads)
        parameters[weight.id] = array_f32
    bad = [f"{w.name(scheme)}: not finite" for w in weights if not _finite(parameters[w.id])]
    for copy, original in copies.items():
        if source.read(copy).tobytes() != source.read(original).tobytes():
            bad.append(f"{copy}: expected a copy of {original} (the config ties them), it differs")
    _refuse(source.where, bad)
    return parameters


def write_parameters(
    weights: tuple[Weight, ...], parameters: Mapping[str, Array], scheme: Scheme
) -> dict[str, Array]:
    """The tensors by the file's names, in the file's order of rows."""
    tensors = {}
    for weight in weights:
        array = parameters[weight.id]
        if scheme == "gguf" and weight.gguf_heads:
            array = join_pairs(array, weight.gguf_heads)
        tensors[weight.name(scheme)] = np.ascontiguousarray(array)
    return tensors


def join_pairs(rows_N: Array, n_heads: int) -> Array:
    """Rows of a query or key weight from half-split to interleaved order, head by head.

    Source: llama.cpp convert_hf_to_gguf.py, LlamaModel.permute.
    """
    halves = rows_N.reshape(n_heads, 2, rows_N.shape[0] // n_heads // 2, *rows_N.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows_N.shape))


def split_pairs(rows_N: Array, n_heads: int) -> Array:
    """The inverse of `join_pairs`."""
    pairs = rows_N.reshape(n_heads, rows_N.shape[0] // n_heads // 2, 2, *rows_N.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows_N.shape))


def _differences(
    weights: tuple[Weight, ...],
    shapes: Mapping[str, tuple[int, ...]],
    scheme: Scheme,
    copies: Mapping[str, str],
) -> Iterator[str]:
    """One line for each tensor in which the file and the table differ."""
    expected = {w.name(scheme): w.shape for w in weights}
    for name, shape in expected.items():
        if name not in shapes:
            yield f"{name}: missing"
        elif tuple(shapes[name]) != shape:
            yield f"{name}: expected shape {shape}, got {tuple(shapes[name])}"
    for name in shapes:
        if name not in expected and name not in copies:
            yield f"{name}: not a tensor of this model"


def _refuse(where: str, problems: list[str]) -> None:
    if problems:
        raise InputError(
            f"{where}: expected exactly the tensors of its config, got\n  " + "\n  ".join(problems),
            hint="check that config and weights belong together and that the download is complete",
        )


def _finite(array: Array) -> bool:
    return bool(np.isfinite(array).all())
