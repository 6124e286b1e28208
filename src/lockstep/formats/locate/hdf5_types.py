"""The element types of HDF5 as they are stored: no conversion is ever asked of the library."""

from __future__ import annotations

from typing import Any

from lockstep.errors import InputError
from lockstep.formats.leaf import ELEMENT_TYPES, ElementType

# Bytes, (sign, exponent and its bits, mantissa and its bits), bias of the exponent.
_FLOATS = {
    (2, (15, 10, 5, 0, 10), 15): "F16",
    (2, (15, 7, 8, 0, 7), 127): "BF16",
    (4, (31, 23, 8, 0, 23), 127): "F32",
    (8, (63, 52, 11, 0, 52), 1023): "F64",
}


def stored_element(h5py: Any, dataset: Any, where: str) -> tuple[ElementType, bool]:
    """The element type of a dataset, and whether its bytes are big-endian.

    Raises: InputError naming a type that is no number.
    """
    kind = dataset.id.get_type()
    found = _number(h5py, kind)
    if found is None and isinstance(kind, h5py.h5t.TypeOpaqueID):
        found = _opaque(kind, _text(dataset.attrs.get("dtype")))
    if found is None and isinstance(kind, h5py.h5t.TypeCompoundID):
        found = _complex(h5py, kind)
    if found is None:
        raise InputError(
            f"{where}: expected numbers, got elements of type {_described(dataset, kind)}",
            hint="leave this dataset out of the file, or store each field as a dataset of its own",
        )
    return found


def _number(h5py: Any, kind: Any) -> tuple[ElementType, bool] | None:
    types = h5py.h5t
    size = kind.get_size()
    if isinstance(kind, types.TypeEnumID):
        if kind.dtype == bool:
            return ELEMENT_TYPES["BOOL"], False
        return _number(h5py, kind.get_super())
    if isinstance(kind, types.TypeIntegerID | types.TypeBitfieldID):
        is_integer = isinstance(kind, types.TypeIntegerID)  # of the others h5py says no more
        is_odd = is_integer and (kind.get_precision() != 8 * size or kind.get_offset())
        if size not in (1, 2, 4, 8) or is_odd:
            return None
        signed = is_integer and kind.get_sign() == types.SGN_2
        name = f"{'I' if signed else 'U'}{8 * size}"
        return ELEMENT_TYPES[name], _is_big(h5py, kind)
    if isinstance(kind, types.TypeFloatID):
        known = _FLOATS.get((size, tuple(kind.get_fields()), kind.get_ebias()))
        if known is None or kind.get_order() not in (types.ORDER_LE, types.ORDER_BE):
            return None
        return ELEMENT_TYPES[known], _is_big(h5py, kind)
    return None


def _is_big(h5py: Any, kind: Any) -> bool:
    return bool(kind.get_size() > 1 and kind.get_order() == h5py.h5t.ORDER_BE)


def _opaque(kind: Any, declared: str) -> tuple[ElementType, bool] | None:
    """Bytes without a meaning, but where an attribute `dtype` beside them says bfloat16 (Keras)."""
    size = kind.get_size()
    if declared == "bfloat16" and size == 2:
        return ELEMENT_TYPES["BF16"], False
    return (ElementType(f"OPAQUE{size}", size), False) if size in (1, 2, 4, 8) else None


def _complex(h5py: Any, kind: Any) -> tuple[ElementType, bool] | None:
    """What h5py writes for a complex number: two floats named r and i."""
    if kind.get_nmembers() != 2 or [kind.get_member_name(i) for i in (0, 1)] != [b"r", b"i"]:
        return None
    parts = [_number(h5py, kind.get_member_type(i)) for i in (0, 1)]
    if parts[0] is None or parts[0] != parts[1]:
        return None
    element, is_big = parts[0]
    whole = {"F32": "C64", "F64": "C128"}.get(element.name)
    offsets = [kind.get_member_offset(i) for i in (0, 1)]
    if whole is None or offsets != [0, element.n_bytes] or kind.get_size() != 2 * element.n_bytes:
        return None
    return ELEMENT_TYPES[whole], is_big


def _text(found: Any) -> str:
    return found.decode("utf-8", "replace") if isinstance(found, bytes) else str(found)


def _described(dataset: Any, kind: Any) -> str:
    try:
        return f"{dataset.dtype!s:.120}"
    except (TypeError, ValueError):
        return type(kind).__name__
