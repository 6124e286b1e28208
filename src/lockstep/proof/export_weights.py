"""Every setting and every element of an exported model, against the model that it was made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from lockstep.artifacts import Check
from lockstep.engine.export_gguf import ExportType, differing
from lockstep.engine.source import Source
from lockstep.formats.dequantise import dequantise
from lockstep.formats.quantise import quantise
from lockstep.ir import Array


def settings_check(source: Source, exported: Source) -> Check:
    """The settings that the file says, against those of the model."""
    lost = differing(source.model.config, exported.model.config)
    same_family = source.model.family is exported.model.family
    return Check.measured(
        id="settings", name="settings that differ", against="the model",
        compared=1 + len(source.model.config.__dataclass_fields__), unit="settings",
        figure=len(lost) + (not same_family), relation="==", bound=0, reason="; ".join(lost),
    )  # fmt: skip


def weights_check(source: Source, exported: Source, wanted: ExportType) -> Check:
    """All elements: as they lie in the file, and as we hold them, bit for bit."""
    compared, bad = 0, []
    for name, n_elements, n_differing in _tensors(source, exported, wanted):
        compared += n_elements
        if n_differing:
            bad.append((name, n_differing))
    shown = ", ".join(f"{name} ({n:,})" for name, n in bad[:4])
    return Check.measured(
        id="weights", name="elements that differ",
        against="the model" if wanted == "F32" else f"the model rounded to {wanted}",
        compared=compared, unit="elements", figure=sum(n for _, n in bad), relation="==", bound=0,
        reason=f"in {shown}" if bad else "",
    )  # fmt: skip


def _tensors(
    source: Source, exported: Source, wanted: ExportType
) -> Iterator[tuple[str, int, int]]:
    """For each tensor its name, how many elements it has, and how many of them differ."""
    scheme = exported.kind
    assert scheme in ("gguf", "hf")
    file = exported.gguf if exported.gguf is not None else exported.hf
    assert file is not None
    model = source.model
    held = expected_parameters(source, wanted, scheme)
    for weight in model.family.weights(model.config):
        name, form = weight.name(scheme), weight.form(scheme)
        kind = weight.written_as(scheme, wanted)
        ours = np.ascontiguousarray(form.stored(source.parameters.f32(weight.id)), np.float32)
        rows = ours.reshape(-1, ours.shape[-1])
        differ = _differing(dequantise(quantise(rows, kind, name), kind), file.read(name))
        differ += int(file.stored[name] != kind)
        differ += _differing(held[weight.id], exported.parameters.f32(weight.id))
        yield name, ours.size, differ
    extra = model.family.gguf_tensors(model.config) if scheme == "gguf" else {}
    for name, array in extra.items():
        yield name, array.size, _differing(array, file.read(name))


class OneByOne(Mapping[str, Array]):
    """Arrays by name, each read when it is asked for and kept by nobody here."""

    def __init__(self, names: Iterable[str], read: Callable[[str], Array]) -> None:
        self._names, self._read = dict.fromkeys(names), read

    def __getitem__(self, name: str) -> Array:
        if name not in self._names:
            raise KeyError(name)
        return self._read(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names  # without reading it

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def expected_parameters(source: Source, wanted: ExportType, scheme: Any) -> Mapping[str, Array]:
    """The parameters that the export should hold: the model's, rounded to what is written.

    A form may round as well: a gain less one, the exponential of a logarithm.
    """
    weights = {weight.id: weight for weight in source.model.family.weights(source.model.config)}

    def read(id: str) -> Array:
        kind, form = weights[id].written_as(scheme, wanted), weights[id].form(scheme)
        rows = np.ascontiguousarray(form.stored(source.parameters.f32(id)), np.float32)
        rounded = dequantise(quantise(rows, kind, id), kind)
        return np.ascontiguousarray(form.held(rounded), np.float32)

    return OneByOne(weights, read)


def _differing(expected: Array, found: Array) -> int:
    """How many elements have other bits."""
    ours, theirs = (np.ascontiguousarray(a, "<f4").reshape(-1).view("<u4") for a in
                    (expected, found))  # fmt: skip
    return int((ours != theirs).sum()) if ours.size == theirs.size else max(ours.size, theirs.size)
