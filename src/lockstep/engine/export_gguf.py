"""A model written as a GGUF file: its settings, its tokenizer, and its weights in one type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lockstep import __version__
from lockstep.build import Model
from lockstep.engine.source import Source
from lockstep.engine.text import open_templates, open_tokenizer
from lockstep.errors import LockstepError, UsageError
from lockstep.formats.gguf_write import write_gguf
from lockstep.formats.to_write import TensorToWrite
from lockstep.tokenizers import gguf_tokenizer_metadata, padded, unread_ends, vocabulary_of

ExportType = Literal["F32", "F16", "BF16", "Q8_0"]
EXPORT_TYPES: tuple[ExportType, ...] = get_args(ExportType)
Array = NDArray[Any]

# general.file_type.  Source: enum llama_ftype of llama.h
_FILE_TYPES: dict[ExportType, int] = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}


def export_gguf(source: Source, path: Path, wanted: ExportType) -> None:
    """Writes a model; an existing file is replaced.

    Raises: UsageError if GGUF cannot say what the model is; InputError if a number does not fit.
    """
    write_gguf(path, gguf_metadata(source, wanted), gguf_tensors(source, wanted), force=True)


def gguf_tensors(source: Source, wanted: ExportType) -> dict[str, TensorToWrite]:
    """The tensors by GGUF's names, each made when its turn has come."""
    source = source.in_hf_order()
    model = source.model
    tensors = {
        name: TensorToWrite(array.shape, "F32", partial(_given, array))
        for name, array in model.family.gguf_tensors(model.config).items()
    }
    for weight in model.family.weights(model.config):

        def rows(id: str = weight.id, form: Any = weight.gguf_form) -> Array:
            return np.ascontiguousarray(form.stored(source.parameters.f32(id)), np.float32)

        shape = weight.gguf_form.shape(weight.shape)
        tensors[weight.gguf] = TensorToWrite(shape, weight.written_as("gguf", wanted), rows)
    return tensors


def _given(array: Array) -> Array:
    return array


def gguf_metadata(source: Source, wanted: ExportType) -> dict[str, Any]:
    """All keys of the file.

    Raises: UsageError if a setting of the model, or its tokenizer, has no spelling in GGUF.
    """
    general = {
        "general.architecture": source.model.family.name,
        "general.type": "model",
        "general.name": source.path.stem if source.kind == "gguf" else source.path.name,
        "general.file_type": _FILE_TYPES[wanted],
        "general.quantization_version": 2,
        "general.description": f"exported by lockstep {__version__}",
    }
    return general | _settings(source.model) | _tokenizer(source)


def _settings(model: Model) -> dict[str, Any]:
    """The settings, once they read back as they were."""
    family, config = model.family, model.config
    if family.to_gguf is None:
        raise UsageError(
            f"export: expected a family that is written as GGUF, got {family.name}",
            hint="export it with --to hf",
        )
    config = family.in_hf_order(config)
    metadata = family.to_gguf(config)
    shapes = {w.gguf: w.gguf_form.shape(w.shape) for w in family.weights(config)}
    planned = _Planned(shapes, family.gguf_tensors(config))
    try:
        lost = differing(config, family.in_hf_order(family.from_gguf(metadata, planned)))
    except LockstepError as error:
        lost = [error.message]
    if lost:
        raise UsageError(
            f"export: expected settings that GGUF has keys for, got {', '.join(lost)}",
            hint="export it with --to hf",
        )
    return {key: _typed(value) for key, value in metadata.items()}


def differing(config: Any, other: Any) -> list[str]:
    """The settings in which two configs of a family differ, with both values."""
    names = config.__dataclass_fields__
    pairs = ((name, getattr(config, name), getattr(other, name)) for name in names)
    return [f"{name} {mine} (read back as {theirs})" for name, mine, theirs in pairs
            if mine != theirs]  # fmt: skip


@dataclass(frozen=True)
class _Planned:
    """The tensors of a file that is not there yet, as far as settings depend on them."""

    weights: Mapping[str, tuple[int, ...]]
    extra: Mapping[str, Array]
    where: str = "export"

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {**self.weights, **{name: array.shape for name, array in self.extra.items()}}

    @property
    def stored(self) -> Mapping[str, str]:
        return dict.fromkeys(self.shapes, "F32")

    def read(self, name: str) -> Array:
        return self.extra[name]

    def raw(self, name: str) -> Array:
        return self.extra[name].view(np.uint8)[None]


def _tokenizer(source: Source) -> dict[str, Any]:
    """The keys of the tokenizer; those of a GGUF file are kept as they are."""
    if source.gguf is not None:
        return {k: _typed(v) for k, v in source.metadata.items() if k.startswith("tokenizer.")}
    tokenizer = open_tokenizer(source)
    vocabulary = padded(vocabulary_of(tokenizer), source.model.config.vocab)
    return gguf_tokenizer_metadata(vocabulary, open_templates(source, tokenizer).named)


def lost_ends(source: Source) -> list[str]:
    """The tokens at which llama.cpp would not end an answer, as the file has no key for them."""
    if source.gguf is not None:
        return []
    vocabulary = vocabulary_of(open_tokenizer(source))
    return [vocabulary.pieces[id] for id in unread_ends(vocabulary)]


def _typed(value: Any) -> Any:
    """An array as the reader gives it, with a type again."""
    if not isinstance(value, list) or (value and isinstance(value[0], str)):
        return value
    if value and isinstance(value[0], float):
        return np.array(value, np.float32)
    found = np.array(value, None if value else np.int32)  # of bool, int64 or uint64
    least, most = np.iinfo(np.int32).min, np.iinfo(np.int32).max
    fits = (
        found.dtype.kind in "iu" and least <= found.min(initial=0) <= found.max(initial=0) <= most
    )
    return found.astype(np.int32) if fits else found
