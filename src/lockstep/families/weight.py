"""The weight table: every parameter of a model with its shape and its name in each file format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypedDict

import numpy as np

from lockstep.errors import InputError
from lockstep.families.form import AS_IS, Form
from lockstep.families.source import TensorSource
from lockstep.ir import Array

Scheme = Literal["hf", "gguf"]
_Q8_0_GROUP = 32  # elements of a block

Parts = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """One parameter: our id, its shape, and what files call it and how they keep it.

    `decay` says whether weight decay applies: to matrices, not to gains and biases. `gguf_exact`
    says that llama.cpp reads it in F32 only, though it is no vector. `parts` are what it joins
    side by side: a name, the first place and the end of each.
    """

    id: str
    shape: tuple[int, ...]
    hf: str
    gguf: str
    decay: bool
    hf_form: Form = AS_IS
    gguf_form: Form = AS_IS
    gguf_exact: bool = False
    parts: Parts = ()

    def name(self, scheme: Scheme) -> str:
        """What a file of this kind calls the weight."""
        return self.hf if scheme == "hf" else self.gguf

    def form(self, scheme: Scheme) -> Form:
        """In which form a file of this kind keeps the weight."""
        return self.hf_form if scheme == "hf" else self.gguf_form

    def written_as(self, scheme: Scheme, wanted: str) -> str:
        """The type in which a file of this kind is written with it, where `wanted` is asked for.

        As transformers writes all, and as llama.cpp's converter: vectors stay in F32, and rows that
        are no whole blocks in F16.
        """
        if scheme == "hf":
            return wanted
        if len(self.shape) < 2 or self.gguf_exact:
            return "F32"
        return "F16" if wanted == "Q8_0" and self.shape[-1] % _Q8_0_GROUP else wanted


class Forms(TypedDict, total=False):
    """The forms of a parameter in each kind of file."""

    hf_form: Form
    gguf_form: Form


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

    def gain(self, id: str, width: int, hf: str, gguf: str, hf_form: Form = AS_IS) -> None:
        """Adds the gain of a norm."""
        self.put((width,), f"{id}.weight", f"{hf}.weight", f"{gguf}.weight", hf_form=hf_form)

    def linear(
        self,
        id: str,
        shape: tuple[int, int],
        hf: str,
        gguf: str,
        *,
        bias: bool = False,
        hf_form: Form = AS_IS,
        gguf_form: Form = AS_IS,
        parts: Parts = (),
    ) -> None:
        """Adds the matrix of a linear, and its bias if it has one."""
        forms: Forms = {"hf_form": hf_form, "gguf_form": gguf_form}
        self.put(shape, f"{id}.weight", f"{hf}.weight", f"{gguf}.weight", parts=parts, **forms)
        if bias:
            self.put(shape[:1], f"{id}.bias", f"{hf}.bias", f"{gguf}.bias", **forms)

    def put(
        self,
        shape: tuple[int, ...],
        id: str,
        hf: str,
        gguf: str,
        *,
        hf_form: Form = AS_IS,
        gguf_form: Form = AS_IS,
        gguf_exact: bool = False,
        parts: Parts = (),
    ) -> None:
        """Adds a parameter by its whole names."""
        id, hf, gguf = (p + n for p, n in zip(self._prefix, (id, hf, gguf), strict=True))
        self.weights.append(
            Weight(
                id=id,
                shape=shape,
                hf=hf,
                gguf=gguf,
                decay=len(shape) > 1,
                hf_form=hf_form,
                gguf_form=gguf_form,
                gguf_exact=gguf_exact,
                parts=parts,
            )
        )


class OtherTensors(InputError):
    """A file whose tensors are not those that its own config names."""


class Parameters(Mapping[str, Weight]):
    """The parameters of a model in a file: by our id, in the order of the table, read one by one.

    Raises: OtherTensors naming every tensor that is missing, extra or of another shape.
    """

    def __init__(
        self,
        weights: tuple[Weight, ...],
        source: TensorSource,
        scheme: Scheme,
        copies: Mapping[str, str] | None = None,
    ) -> None:
        """`copies` names tensors that the file may hold besides, and of what they are copies."""
        self._weights = {w.id: w for w in weights}
        self._source, self._scheme = source, scheme
        self.copies = {k: v for k, v in (copies or {}).items() if k in source.shapes}
        problems = list(_differences(weights, source.shapes, scheme, self.copies))
        _refuse(source.where, problems, OtherTensors)

    def __getitem__(self, id: str) -> Weight:
        return self._weights[id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    def name(self, id: str) -> str:
        """What the file calls this parameter."""
        return self._weights[id].name(self._scheme)

    def stored(self, id: str) -> str:
        """The type in which the file keeps it."""
        return self._source.stored[self.name(id)]

    def f32(self, id: str) -> Array:
        """Its values as we hold them.

        Raises: InputError if one is not finite, or is none that the file can have in its form, or
        if the file has a copy of them that differs.
        """
        _refuse(self._source.where, list(self._other_copies([id])))
        array = self._values(id)
        if not _finite(array):
            _refuse(self._source.where, [f"{self.name(id)}: not finite"])
        return array

    def has_rows(self, id: str) -> bool:
        """Whether it is a matrix whose rows are those of the file, in some order."""
        weight = self._weights[id]
        order = weight.form(self._scheme).row_order(weight.shape[0])
        return len(weight.shape) == 2 and order is not None

    def rows(self, id: str) -> Array:
        """Its rows in our order, as bytes of the stored type: (rows, bytes of a row).

        Raises: InputError if the file has a copy of them that differs.
        """
        _refuse(self._source.where, list(self._other_copies([id])))
        weight = self._weights[id]
        raw = self._source.raw(self.name(id))
        form = weight.form(self._scheme)
        if form == AS_IS:
            return raw  # as it is mapped, without a copy
        order = form.row_order(weight.shape[0])
        assert order is not None, f"{id}: ask has_rows first"
        return raw[order]

    def all_f32(self) -> dict[str, Array]:
        """All values, and the copies compared bit by bit.

        Raises: InputError naming every tensor that is not finite, or no copy.
        """
        values = {id: self._values(id) for id in self}
        bad = [f"{self.name(id)}: not finite" for id in self if not _finite(values[id])]
        _refuse(self._source.where, [*bad, *self._other_copies(self)])
        return values

    def _other_copies(self, ids: Iterable[str]) -> Iterator[str]:
        """A line for each copy of these parameters that is none."""
        names = {self.name(id) for id in ids}
        for copy, original in self.copies.items():
            if original in names and not self._is_copy(copy, original):
                yield f"{copy}: expected a copy of {original} (the config ties them), it differs"

    def _is_copy(self, copy: str, original: str) -> bool:
        source = self._source
        if source.stored[copy] == source.stored[original]:
            return bool(np.array_equal(source.raw(copy), source.raw(original)))
        return source.read(copy).tobytes() == source.read(original).tobytes()

    def _values(self, id: str) -> Array:
        stored = np.asarray(self._source.read(self.name(id)), dtype=np.float32)
        form = self._weights[id].form(self._scheme)
        if fault := form.fault(stored):
            raise InputError(
                f"{self._source.where}, {self.name(id)}: {fault}",
                hint="convert the model again, with a converter that knows its family",
            )
        return np.ascontiguousarray(form.held(stored), dtype=np.float32)


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
    return Parameters(weights, source, scheme, copies).all_f32()


def write_parameters(
    weights: tuple[Weight, ...], parameters: Mapping[str, Array], scheme: Scheme
) -> dict[str, Array]:
    """The tensors by the file's names, in the form in which it keeps them."""
    return {
        w.name(scheme): np.ascontiguousarray(w.form(scheme).stored(parameters[w.id]))
        for w in weights
    }


def _differences(
    weights: tuple[Weight, ...],
    shapes: Mapping[str, tuple[int, ...]],
    scheme: Scheme,
    copies: Mapping[str, str],
) -> Iterator[str]:
    """One line for each tensor in which the file and the table differ."""
    expected = {w.name(scheme): w.form(scheme).shape(w.shape) for w in weights}
    for name, shape in expected.items():
        if name not in shapes:
            yield f"{name}: missing"
        elif tuple(shapes[name]) != shape:
            yield f"{name}: expected shape {shape}, got {tuple(shapes[name])}"
    for name in shapes:
        if name not in expected and name not in copies:
            yield f"{name}: not a tensor of this model"


def _refuse(where: str, problems: list[str], kind: type[InputError] = InputError) -> None:
    if problems:
        raise kind(
            f"{where}: expected exactly the tensors of its config, got\n  " + "\n  ".join(problems),
            hint="check that config and weights belong together and that the download is complete",
        )


def _finite(array: Array) -> bool:
    return bool(np.isfinite(array).all())
