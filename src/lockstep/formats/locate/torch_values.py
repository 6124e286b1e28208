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
    Index,
    Key,
    Leaf,
    LeafPath,
    Storage,
    path_text,
)
from lockstep.formats.restricted_pickle import Bag, Call, Global, Persistent, Table

MAX_DEPTH = 64
MAX_NAME = 16_384  # characters
MAX_NAMES = 32 << 20  # characters of all names together: shared branches of a pickle may explode
MAX_VALUE = 1 << 20  # characters of one value that is no tensor
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
ATTRIBUTED = (SUBCLASS, "torch._utils._rebuild_parameter_with_state")
ATTRIBUTES = "tensors with a class or attributes of their own, which are not compared"
STATES = "dictionaries with a state beside their items (such as `_metadata`), which is not compared"
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
        f"{where}: expected a dense tensor or a plain value, got {what:.200}", hint=HINT
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
    shape, strides = size_of(arguments[2], where), size_of(arguments[3], where)
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


class Walk:
    """From what a pickle holds to leaves, within bounds on depth and on names."""

    def __init__(self, where: str, find: Find) -> None:
        self.where = where
        self.find = find
        self.leaves: list[Leaf] = []
        self.spans: dict[str, tuple[str, tuple[int, int]]] = {}
        self.notes: list[str] = []
        self.left = MAX_NAMES

    def add(self, value: Any, path: LeafPath) -> None:
        """Lists a value and what it contains.

        Raises: InputError, with the name of the leaf, for what is neither tensor nor plain.
        """
        name = path_text(path)
        self.left -= len(name) + 64
        if len(path) > MAX_DEPTH or len(name) > MAX_NAME or self.left < 0:
            raise _wrong(
                f"{self.where} ({name:.80})",
                f"at most {MAX_DEPTH} levels and {MAX_NAMES >> 20} MiB of names",
                "more; a pickle may hold one branch many times",
            )
        if isinstance(value, Table):
            self._table(value, path)
        elif isinstance(value, list | tuple) and value:
            for i, item in enumerate(value):
                self.add(item, (*path, Index(i)))
        elif isinstance(value, Call) and value.function not in ("torch.Size", "torch.device"):
            found = tensor_of(value, f"{self.where} ({name:.200})", self.find)
            self.leaves.append(found.leaf(path))
            if value.function in ATTRIBUTED:
                self.note(ATTRIBUTES)
            self.spans[name] = (found.key, found.span)
        else:
            self.leaves.append(self._plain(value, path, name))

    def note(self, text: str) -> None:
        """Says something about the file, once."""
        if text not in self.notes:
            self.notes.append(text)

    def _table(self, table: Table, path: LeafPath) -> None:
        where = f"{self.where} ({path_text(path):.200})"
        if table.state is not None:
            self.note(STATES)
        if not table.pairs:
            self.leaves.append(Leaf(path, (), ElementType("dict", 0), Held(b""), ({},)))
        seen: dict[str, object] = {}
        for key, item in table.pairs:
            if type(key) not in (str, int):
                raise _wrong(where, "keys that are texts or whole numbers", type(key).__name__)
            text = key if isinstance(key, str) else str(key) if abs(key) < 1 << 63 else "?"
            if len(text) > MAX_NAME:
                raise _wrong(where, f"keys of at most {MAX_NAME} signs", f"{len(text)}")
            if text in seen:
                raise _wrong(where, "each key once", f"{text!r:.80} twice, as text or as number")
            seen[text] = None
            self.add(item, (*path, Key(text)))

    def _plain(self, value: Any, path: LeafPath, name: str) -> Leaf:
        """A leaf that is no tensor: its type's name and its value."""
        kind, plain = plain_value(value, f"{self.where} ({name:.200})")
        self.left -= len(plain) if isinstance(plain, str | list) else 0
        return Leaf(path, (), ElementType(kind, 0), Held(b""), (plain,))


def plain_value(value: Any, where: str) -> tuple[str, Any]:
    """The name of a plain value's type, and the value as JSON has it.

    Raises: InputError if it is not plain.
    """
    if value is None:
        return "none", None
    if isinstance(value, bool | int | float | str):
        if (isinstance(value, str) and len(value) > MAX_VALUE) or (
            isinstance(value, int) and value.bit_length() > 2048
        ):
            raise _wrong(where, f"a value of at most {MAX_VALUE} signs", "a longer one")
        return type(value).__name__, value
    if isinstance(value, bytes) and len(value) <= MAX_VALUE // 2:
        return "bytes", value.hex()
    if isinstance(value, list | tuple) and not value:
        return type(value).__name__, []
    if isinstance(value, Global):
        return "name", value.name
    if isinstance(value, Bag) and len(value.items) <= MAX_VALUE // 64:
        items = [plain_value(item, where) for item in value.items if not isinstance(item, Bag)]
        if len(items) == len(value.items):
            return "set", sorted((list(item) for item in items), key=repr)
    if isinstance(value, Call) and value.function == "torch.Size":
        return "torch.Size", list(size_of(value, where))
    if isinstance(value, Call) and value.function == "torch.device":
        texts = [str(part) for part in value.arguments if isinstance(part, str | int)]
        if len(texts) == len(value.arguments) <= 2:
            return "torch.device", ":".join(texts)[:64]
    raise _wrong(where, "a tensor or a plain value", type(value).__name__)


def share(leaves: list[Leaf], spans: dict[str, tuple[str, tuple[int, int]]]) -> list[Leaf]:
    """The leaves, with those marked that lie on the very same bytes."""
    uses: dict[tuple[str, tuple[int, int]], int] = {}
    for span in spans.values():
        uses[span] = uses.get(span, 0) + 1
    return [_shared(leaf, spans, uses) for leaf in leaves]


def _shared(
    leaf: Leaf,
    spans: dict[str, tuple[str, tuple[int, int]]],
    uses: dict[tuple[str, tuple[int, int]], int],
) -> Leaf:
    found = spans.get(leaf.name)
    if found is None or uses[found] < 2 or not leaf.n_elements:
        return leaf
    key, (start, stop) = found
    return Leaf(
        leaf.path, leaf.shape, leaf.element, leaf.storage, leaf.value, leaf.physical,
        shares=f"{key}[{start}:{stop}]", checksum=leaf.checksum,
    )  # fmt: skip


def _wrong(where: str, expected: str, got: str) -> InputError:
    return InputError(f"{where}: expected {expected}, got {got}", hint=HINT)
