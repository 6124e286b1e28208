"""GGUF files written whole: metadata, then one tensor after the other, never all in memory.

Source: https://github.com/ggml-org/ggml/blob/01f0d4da3e44/docs/gguf.md
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from lockstep.errors import EnvironmentLacks, UsageError
from lockstep.formats.atomic import replacing
from lockstep.formats.dequantise import SUPPORTED
from lockstep.formats.locate.gguf import MAX_DIMS, TYPES
from lockstep.formats.to_write import TensorToWrite

VERSION = 3
ALIGNMENT = 32
MAX_NAME_BYTES = 63  # GGML_MAX_NAME of ggml.h, less the zero at the end
_TYPE_IDS = {element.name: i for i, element in TYPES.items()}
_STRING, _ARRAY = 8, 9
# dtype -> type id.  Source: enum gguf_type of gguf.h
_SCALARS = {
    np.dtype(name): i
    for i, name in (
        *((0, "u1"), (1, "i1"), (2, "<u2"), (3, "<i2"), (4, "<u4"), (5, "<i4"), (6, "<f4")),
        *((7, "?"), (10, "<u8"), (11, "<i8"), (12, "<f8")),
    )
}

Scalar = str | bool | int | float | np.generic
Value = Scalar | Sequence[str] | NDArray[Any]


def write_gguf(
    path: Path,
    metadata: Mapping[str, Value],
    tensors: Mapping[str, TensorToWrite],
    *,
    force: bool = False,
) -> None:
    """Writes a file whole or not at all; an existing one is replaced only with `force`.

    Of plain Python values an int is written as UINT32 where it fits, else as INT32, UINT64 or
    INT64, and a float as FLOAT32; a NumPy scalar or array keeps its type.
    Raises: UsageError if the path exists. EnvironmentLacks if the disk is full or read-only.
    InputError if a number does not fit the type that it is to be stored in.
    """
    if path.exists() and not force:
        raise UsageError(
            f"{path}: expected a new file, it exists", hint="choose another, or pass --force"
        )
    alignment = int(metadata.get("general.alignment", ALIGNMENT))  # type: ignore[arg-type]
    head = _head(metadata, tensors, alignment)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, open(temporary, "wb") as file:
            file.write(head)
            for name, tensor in tensors.items():
                _write_tensor(file, name, tensor, alignment)
    except OSError as error:
        raise EnvironmentLacks(
            f"{path}: cannot be written: {error}", hint="check free space and permissions"
        ) from error


def _head(
    metadata: Mapping[str, Value], tensors: Mapping[str, TensorToWrite], alignment: int
) -> bytes:
    """All before the first tensor, padded."""
    parts = [b"GGUF", struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += [_text(key), _value(key, value)]
    offset = 0
    for name, tensor in tensors.items():
        parts.append(_listed(name, tensor, offset))
        offset += _padded(tensor.n_bytes, alignment)
    head = b"".join(parts)
    return head.ljust(_padded(len(head), alignment), b"\0")


def _listed(name: str, tensor: TensorToWrite, offset: int) -> bytes:
    """How the head lists a tensor: the axes are the fastest first."""
    n_axes, element = len(tensor.shape), SUPPORTED[tensor.stored]
    if len(name.encode()) > MAX_NAME_BYTES or not 1 <= n_axes <= MAX_DIMS:
        raise UsageError(
            f"{name:.120}: expected a name of at most {MAX_NAME_BYTES} bytes and 1 to {MAX_DIMS}"
            f" axes, got {len(name.encode())} bytes and {n_axes} axes"
        )
    if tensor.shape[-1] % element.n_numbers:
        raise UsageError(
            f"{name}: expected rows in blocks of {element.n_numbers} for {element},"
            f" got shape {tensor.shape}",
            hint="store this tensor as F16",
        )
    axes = struct.pack(f"<I{n_axes}Q", n_axes, *reversed(tensor.shape))
    return _text(name) + axes + struct.pack("<IQ", _TYPE_IDS[tensor.stored], offset)


def _write_tensor(file: BinaryIO, name: str, tensor: TensorToWrite, alignment: int) -> None:
    file.write(tensor.made(name).data)
    file.write(bytes(_padded(tensor.n_bytes, alignment) - tensor.n_bytes))


def _padded(n_bytes: int, alignment: int) -> int:
    return -(-n_bytes // alignment) * alignment


def _text(text: str) -> bytes:
    raw = text.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


def _value(key: str, value: Value) -> bytes:
    """A value with its type before it."""
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    if isinstance(value, (bool, int, float, np.generic)):
        scalar = _typed(key, value)
        return struct.pack("<I", _SCALARS[scalar.dtype]) + scalar.tobytes()
    if isinstance(value, np.ndarray):
        items = value.astype(value.dtype.newbyteorder("<"))
        head = struct.pack("<IIQ", _ARRAY, _SCALARS[items.dtype], items.size)
        return head + items.tobytes()
    return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(map(_text, value))


def _typed(key: str, value: bool | int | float | np.generic) -> np.generic:
    """A scalar of a type that GGUF has."""
    if isinstance(value, np.generic):
        return value
    if isinstance(value, bool):
        return np.bool_(value)
    if isinstance(value, float):
        return np.float32(value)
    for kind in (np.uint32, np.int32, np.uint64, np.int64):
        if np.iinfo(kind).min <= value <= np.iinfo(kind).max:
            return kind(value)
    raise UsageError(f"{key}: expected a number of 64 bits, got {value}")
