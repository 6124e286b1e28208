"""What torch pickles: tensors as views of storages, in dictionaries and lists. No torch here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any

from lockstep.errors import InputError
from lockstep.formats.leaf import (
    ELEMENT_TYPES,
    ElementType,
    Extent,
    Held,
    Leaf,
    LeafPath,
    Storage,
)
from lockstep.formats.locate.bounded import shown
from lockstep.formats.restricted_pickle import Call, Global, Persistent, Table

MAX_ELEMENTS = 1 << 62
HINT = "write the checkpoint with plain tensors and plain values"

DTYPES = {
    f"torch.{name}": ELEMENT_TYPES[element]
    for element, names in {
        "F32": "float32", "F64": "float64", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool",
        "U8": "uint8", "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64",
        "U16": "uint16", "U32": "uint32", "U64": "uint64", "C64": "complex64",
        "C128": "complex128", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
        "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
        "F8_E8M0": "float8_e8m0fnu",
    }.items()
    for name in names.split()
}  # fmt: skip
STORAGES = {
    f"torch.{name}Storage": ELEMENT_TYPES[element]
    for name, element in {
        "Float": "F32", "Double": "F64", "Half": "F16", "BFloat16": "BF16", "Bool": "BOOL",
        "Byte": "U8", "Char": "I8", "Short": "I16", "Int": "I32", "Long": "I64",
        "ComplexFloat": "C64", "ComplexDouble": "C128",
    }.items()
}  # fmt: skip
UNTYPED = ("torch.storage.UntypedStorage", "torch.UntypedStorage")
VIEWS = {"_rebuild_tensor": 4, "_rebuild_tensor_v2": 6, "_rebuild_tensor_v3": 7}
PARAMETERS = ("_rebuild_parameter", "_rebuild_parameter_with_state")
SUBCLASS = "torch._tensor._rebuild_from_type_v2"
PLAIN_TENSORS = ("torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer")
# Known to torch, harmless as a name, and refused where a leaf turns out to be one.
REFUSED = {
    **{
        f"torch._utils.{name}": what
        for name, what in {
            "_rebuild_qtensor": "a quantised tensor",
            "_rebuild_sparse_tensor": "a sparse tensor",
            "_rebuild_sparse_csr_tensor": "a sparse tensor",
            "_rebuild_nested_tensor": "a nested tensor",
            "_rebuild_meta_tensor_no_storage": "a meta tensor, which holds no values",
            "_rebuild_wrapper_subclass": "a tensor subclass",
            "_rebuild_device_tensor_from_numpy": "a tensor of another device",
            "_rebuild_device_tensor_from_cpu_tensor": "a tensor of another device",
        }.items()
    },
    "torch.distributed.tensor.DTensor": "a DTensor",
    "torch.distributed.tensor._dtensor_spec.DTensorSpec": "a DTensor",
    "torch.distributed.tensor._dtensor_spec.TensorMeta": "a DTensor",
}
QUANTISED = ("QInt8", "QUInt8", "QInt32", "QUInt4x2", "QUInt2x4")
OTHER_DTYPES = (
    "complex32", "qint8", "quint8", "qint32", "quint4x2", "quint2x4", "float4_e2m1fn_x2", "uint1",
    "uint2", "uint3", "uint4", "uint5", "uint6", "uint7", "int1", "int2", "int3", "int4", "int5",
    "int6", "int7", "bits8",
)  # fmt: skip
LAYOUTS = (
    "strided", "sparse_coo", "sparse_csr", "sparse_csc", "per_tensor_affine",
    "per_channel_affine",
)  # fmt: skip
ALLOWED = frozenset(
    chain(
        DTYPES, STORAGES, UNTYPED, PLAIN_TENSORS, REFUSED, [SUBCLASS, "torch.Size", "torch.device"],
        (f"torch._utils.{name}" for name in (*VIEWS, *PARAMETERS)),
        (f"torch.{name}Storage" for name in QUANTISED),
        (f"torch.{name}" for name in (*OTHER_DTYPES, *LAYOUTS)),
        ["torch.serialization._get_layout"],
    )
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Place:
    """Where a storage lies.  Units: offset and length in bytes."""

    file: Path
    offset: int
    n_bytes: int
    big_endian: bool = False


@dataclass(frozen=True, slots=True)
class StorageUse:
    """A tensor's storage: its key, the type of its elements (None is bytes), and how many."""

    key: str
    element: ElementType | None
    n_elements: int
    view: Any = None


def size_of(value: Any, where: str) -> tuple[int, ...]:
    """A shape, as a tuple or a `torch.Size`.

    Raises: InputError if it is anything else, or its product has no end.
    """
    if isinstance(value, Call) and value.function == "torch.Size" and len(value.arguments) == 1:
        value = value.arguments[0]
    if not isinstance(value, list | tuple) or not all(type(n) is int for n in value):
        raise _wrong(where, "a shape of whole numbers", type(value).__name__)
    if len(value) > 64 or any(not 0 <= n < MAX_ELEMENTS for n in value):
        raise _wrong(where, "at most 64 axes of 0 to 2^62 elements", f"{value!s:.80}")
    if prod(n for n in value if n) >= MAX_ELEMENTS:
        raise _wrong(where, "fewer than 2^62 elements", f"the shape {value!s:.80}")
    return tuple(value)


def _strides_of(value: Any, where: str) -> tuple[int, ...]:
    """Strides, whose product means nothing; what they reach is held against the storage.

    Raises: InputError if they are anything else.
    """
    if not isinstance(value, list | tuple) or not all(type(n) is int for n in value):
        raise _wrong(where, "strides of whole numbers", type(value).__name__)
    if len(value) > 64 or any(not 0 <= n < MAX_ELEMENTS for n in value):
        raise _wrong(where, "at most 64 strides of 0 to 2^62", f"{value!s:.80}")
    return tuple(value)


def storage_use(reference: Any, where: str) -> StorageUse:
    """What a persistent id says about a storage.

    Raises: InputError if it is no reference to a storage that we know.
    """
    parts = reference.id if isinstance(reference, Persistent) else None
    if not isinstance(parts, tuple) or len(parts) not in (5, 6) or parts[0] != "storage":
        raise _wrong(where, "a reference to a storage", "something else")
    kind, key, _, n_elements = parts[1:5]
    if not isinstance(kind, Global) or type(key) is not str or type(n_elements) is not int:
        raise _wrong(where, "a storage with a type, a key and a length", "something else")
    if kind.name not in STORAGES and kind.name not in UNTYPED:
        raise _wrong(where, "a storage of plain numbers", kind.name)
    if not 0 <= n_elements < MAX_ELEMENTS or len(key) > 256:
        raise _wrong(where, "a storage with a short key and a length", f"{n_elements}")
    return StorageUse(key, STORAGES.get(kind.name), n_elements, *parts[5:])


Find = Callable[[StorageUse, str], Place]


@dataclass(frozen=True, slots=True)
class Found:
    """A tensor that was found in a pickle, and which storage it is a view of."""

    shape: tuple[int, ...]
    element: ElementType
    storage: Storage
    key: str
    span: tuple[int, int]

    def leaf(self, path: LeafPath) -> Leaf:
        """The tensor as a leaf at a path."""
        return Leaf(path, self.shape, self.element, self.storage, physical=self.key)


def tensor_of(call: Call, where: str, find: Find) -> Found:
    """The tensor that a call would have made.

    Raises: InputError if it is no dense tensor inside its storage.
    """
    for _ in range(4):  # a parameter of a subclass of a view, at most
        name = call.function.removeprefix("torch._utils.")
        arguments = call.arguments
        if name in PARAMETERS and arguments and isinstance(arguments[0], Call):
            call = arguments[0]
        elif call.function == SUBCLASS:
            call = _inner(arguments, where)
        elif name in VIEWS:
            return _view(name, arguments, where, find)
        else:
            break
    what = REFUSED.get(call.function, call.function)
    raise InputError(
        f"{where}: expected a dense tensor or a plain value, got {shown(what)}", hint=HINT
    )


def _inner(arguments: tuple[Any, ...], where: str) -> Call:
    """The call that makes the tensor under a subclass that adds no meaning."""
    if len(arguments) != 4 or not isinstance(arguments[0], Global):
        raise _wrong(where, "a tensor with its class", "something else")
    kind = arguments[1].name if isinstance(arguments[1], Global) else "no class"
    if kind not in PLAIN_TENSORS or not isinstance(arguments[2], tuple):
        raise _wrong(where, "a dense tensor or a plain value", REFUSED.get(kind, kind))
    return Call(arguments[0].name, arguments[2])


def _view(name: str, arguments: tuple[Any, ...], where: str, find: Find) -> Found:
    """A view of a storage: offset, shape and strides in elements."""
    if not VIEWS[name] <= len(arguments) <= VIEWS[name] + 1:
        raise _wrong(where, f"{VIEWS[name]} arguments of {name}", f"{len(arguments)}")
    use = storage_use(arguments[0], where)
    element = use.element
    if name.endswith("v3"):
        dtype = arguments[6].name if isinstance(arguments[6], Global) else "no type"
        if dtype not in DTYPES or (element and element != DTYPES[dtype]):
            raise _wrong(where, "a type of whole bytes for each number", dtype)
        element = DTYPES[dtype]
    if element is None:
        raise _wrong(where, "a tensor with a type", "bytes without one")
    if len(arguments) > VIEWS[name]:
        _refuse_lazy(arguments[-1], where)
    shape, strides = size_of(arguments[2], where), _strides_of(arguments[3], where)
    start = arguments[1]
    if type(start) is not int or len(strides) != len(shape) or not 0 <= start < MAX_ELEMENTS:
        raise _wrong(where, "an offset, and a stride for each axis", "something else")
    n_storage = use.n_elements if use.element else use.n_elements // element.n_bytes
    if not prod(shape):
        return Found(shape, element, Held(b""), use.key, (0, 0))
    stop = start + 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if stop > n_storage:
        raise _wrong(where, f"a view inside the {n_storage} elements of its storage", f"{stop}")
    place = find(use, where)
    n_bytes = use.n_elements * (use.element.n_bytes if use.element else 1)
    if place.n_bytes != n_bytes:
        raise _wrong(where, f"a storage of {n_bytes} bytes", f"{place.n_bytes}")
    extent = Extent(
        place.file,
        place.offset + start * element.n_bytes,
        compact(shape, strides),
        place.big_endian,
    )
    return Found(
        shape, element, extent, use.key, (extent.offset, place.offset + stop * element.n_bytes)
    )


def compact(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...] | None:
    """None where the strides are those of C order; the stride of an axis of one is no matter."""
    step = 1
    for n, stride in zip(reversed(shape), reversed(strides), strict=True):
        if n != 1 and stride != step:
            return strides
        step *= n
    return None


def _refuse_lazy(metadata: Any, where: str) -> None:
    """Refuses tensors whose values are not what lies in the storage."""
    if metadata is None or (isinstance(metadata, Table) and not metadata.pairs):
        return
    raise _wrong(
        where,
        "a tensor that is what its bytes say",
        "one that is lazily conjugated or \
negated, or has other metadata",
    )


def _wrong(where: str, expected: str, got: str) -> InputError:
    return InputError(f"{where}: expected {expected}, got {got}", hint=HINT)
