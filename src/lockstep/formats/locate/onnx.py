"""ONNX models: the initializers of the main graph, in the model file or in files beside it.

Source: https://github.com/onnx/onnx/blob/v1.17.0/onnx/onnx.proto
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from math import prod
from pathlib import Path

import numpy as np

from lockstep.errors import InputError
from lockstep.formats.leaf import (
    ELEMENT_TYPES,
    ElementType,
    Extent,
    FileIdentity,
    Held,
    Leaf,
    Name,
    Store,
    collect,
)
from lockstep.formats.locate.bounded import opened, shown
from lockstep.formats.protobuf import BYTES, VARINT, Field, Walker

GRAPH, FUNCTIONS, TRAINING = 7, 25, 20  # of ModelProto
NODE, INITIALIZER, SPARSE = 1, 5, 15  # of GraphProto
FUNCTION_NODE = 7
MAX_TENSOR_FIELDS = 200_000
MAX_HELD_BYTES = 16 << 20  # of all numbers that are written as varints
MAX_AXES = 64
MAX_DEPTH = 16
FIXED = {4: ("F32", "C64"), 10: ("F64", "C128")}  # float_data, double_data: as they lie in memory
TYPES = {
    number: ELEMENT_TYPES[name] if name in ELEMENT_TYPES else ElementType(name, 1, 2)
    for number, name in {
        1: "F32", 2: "U8", 3: "I8", 4: "U16", 5: "I16", 6: "I32", 7: "I64", 9: "BOOL", 10: "F16",
        11: "F64", 12: "U32", 13: "U64", 14: "C64", 15: "C128", 16: "BF16", 17: "F8_E4M3",
        18: "F8_E4M3FNUZ", 19: "F8_E5M2", 20: "F8_E5M2FNUZ", 21: "U4", 22: "I4", 23: "F4",
        24: "F8_E8M0",
    }.items()
}  # fmt: skip
INT32_DATA = frozenset(
    {
        "I32", "I16", "I8", "U16", "U8", "BOOL", "F16", "BF16", "F8_E4M3", "F8_E4M3FNUZ",
        "F8_E5M2", "F8_E5M2FNUZ", "F8_E8M0", "U4", "I4", "F4",
    }
)  # fmt: skip
VARINTS = {5: INT32_DATA, 7: frozenset({"I64"}), 11: frozenset({"U32", "U64"})}
# Messages without data, by the number of their field; in each, those that it may hold.
_Messages = Mapping[int, "_Messages"]
_TENSOR_TYPE: _Messages = {1: {2: {1: {}}}, 8: {2: {1: {}}}}
_TYPE: _Messages = {
    **_TENSOR_TYPE, 4: {1: _TENSOR_TYPE}, 5: {2: _TENSOR_TYPE}, 9: {1: _TENSOR_TYPE},
}  # fmt: skip
_VALUE: _Messages = {2: _TYPE, 4: {}}
_IN_GRAPH: _Messages = {1: {9: {}}, 11: _VALUE, 12: _VALUE, 13: _VALUE, 14: {2: {}}, 16: {}}
_BESIDE_GRAPH: _Messages = {8: {}, 14: {}}
NO_CHECKSUM = "ONNX has no checksums: damaged elements show only in the comparison"


@dataclass(slots=True)
class _Tensor:
    """A TensorProto as it was walked: nothing of its data was read."""

    where: str
    name: str
    dims: list[int] = field(default_factory=list)
    data_type: int = 0
    external: dict[str, str] = field(default_factory=dict)
    is_external: bool = False
    is_segment: bool = False
    raw: Field | None = None
    typed: list[Field] = field(default_factory=list)


@dataclass(slots=True)
class _Model:
    """One file, and what is gathered while it is walked."""

    path: Path
    walker: Walker
    files: dict[Path, FileIdentity]
    held_left: int = MAX_HELD_BYTES
    n_inner: int = 0
    initializers: list[Field] = field(default_factory=list)


def locate(path: Path) -> Store:
    """Lists the initializers of an ONNX model.

    Raises: InputError if the file is damaged, data are missing or cut, or lie outside of the
    directory of the model.
    """
    where = str(path)
    with opened(path) as (file, n_bytes):
        identity = FileIdentity.of(path)
        walker = Walker(file, n_bytes, where)
        model = _Model(path, walker, {path: identity})
        _walk_model(model)
        leaves = [_leaf(model, initializer) for initializer in model.initializers]
    notes = [NO_CHECKSUM]
    if model.n_inner:
        notes.append(
            f"{model.n_inner} tensors of nodes, sub-graphs or functions (such as Constant) are no "
            "initializers of the main graph; they are not listed"
        )
    return Store(
        where, "onnx", collect(leaves, where), tuple(model.files.values()), notes=tuple(notes)
    )


def _walk_model(model: _Model) -> None:
    walker = model.walker
    graph: Field | None = None
    for found in walker.fields(0, walker.n_bytes):
        _check_skipped(walker, found, _BESIDE_GRAPH)
        if found.number == GRAPH and found.wire == BYTES:
            if graph is not None:
                raise walker.wrong(found.start, "one graph", "two")
            graph = found
        elif found.number == FUNCTIONS and found.wire == BYTES:
            model.n_inner += _count_inner(walker, found, 0, FUNCTION_NODE)
        elif found.number == TRAINING and found.wire == BYTES:
            for part in walker.fields(found.start, found.stop):
                if part.number in (1, 2) and part.wire == BYTES:  # initialization, algorithm
                    model.n_inner += _count_inner(walker, part, 0)
    if graph is None:
        raise walker.wrong(0, "an ONNX model with a graph", "none")
    for found in walker.fields(graph.start, graph.stop):
        _check_skipped(walker, found, _IN_GRAPH)
        if found.wire != BYTES:
            continue
        if found.number == INITIALIZER:
            model.initializers.append(found)
        elif found.number == NODE:
            model.n_inner += _count_inner_node(walker, found, 0)
        elif found.number == SPARSE:
            raise walker.wrong(found.start, "dense initializers", "a sparse one")


def _check_skipped(walker: Walker, found: Field, messages: _Messages) -> None:
    """Walks a message that holds no data, whose damage would show nowhere else."""
    inner = messages.get(found.number)
    if inner is not None and found.wire == BYTES:
        for part in walker.fields(found.start, found.stop):
            _check_skipped(walker, part, inner)


def _count_inner(walker: Walker, message: Field, depth: int, node: int = NODE) -> int:
    """The tensors of a function, or of a graph that is not the main one."""
    if depth > MAX_DEPTH:
        raise walker.wrong(message.start, f"at most {MAX_DEPTH} graphs in each other", "more")
    n = 0
    for found in walker.fields(message.start, message.stop):
        if found.wire == BYTES and found.number == node:
            n += _count_inner_node(walker, found, depth)
        elif found.wire == BYTES and found.number in (INITIALIZER, SPARSE) and node == NODE:
            n += 1
    return n


def _count_inner_node(walker: Walker, node: Field, depth: int) -> int:
    """The tensors of a node's attributes, and of the graphs that those hold."""
    n = 0
    for attribute in walker.fields(node.start, node.stop):
        if attribute.number != 5 or attribute.wire != BYTES:
            continue
        for found in walker.fields(attribute.start, attribute.stop):
            if found.wire == BYTES and found.number in (5, 10, 22, 23):  # t, tensors, sparse
                n += 1
            elif found.wire == BYTES and found.number in (6, 11):  # g, graphs
                n += _count_inner(walker, found, depth + 1)
    return n


def _leaf(model: _Model, message: Field) -> Leaf:
    """The leaf of one initializer."""
    tensor = _tensor(model.walker, message)
    element = TYPES.get(tensor.data_type)
    if element is None:
        what = {0: "undefined", 8: "texts"}.get(tensor.data_type, f"type {tensor.data_type}")
        raise _wrong(tensor, "numbers of a known type", what)
    shape = tuple(tensor.dims)
    if prod(n for n in shape if n) >= 1 << 60:
        raise _wrong(tensor, "fewer than 2^60 elements", f"the shape {shape!s:.80}")
    if element.n_numbers > 1 and (not shape or shape[-1] % element.n_numbers):
        raise _wrong(tensor, f"an even last axis of {element}", f"the shape {shape!s:.80}")
    n_bytes = prod(shape) // element.n_numbers * element.n_bytes
    ways = [tensor.is_external, tensor.raw is not None, bool(tensor.typed)]
    if sum(ways) > 1 or tensor.is_segment:
        raise _wrong(tensor, "all its data in one place", "several places, or segments")
    storage: Extent | Held = Held(b"")
    if tensor.is_external:
        storage = _external(model, tensor, n_bytes)
    elif tensor.raw is not None:
        if tensor.raw.stop - tensor.raw.start != n_bytes:
            raise _wrong(tensor, f"{n_bytes} bytes", f"{tensor.raw.stop - tensor.raw.start}")
        storage = Extent(model.path, tensor.raw.start)
    elif tensor.typed:
        storage = _typed(model, tensor, element, n_bytes)
    elif n_bytes:
        raise _wrong(tensor, f"{n_bytes} bytes", "none")
    return Leaf((Name(tensor.name),), shape, element, storage)


def _tensor(walker: Walker, message: Field) -> _Tensor:
    """The fields of one TensorProto."""
    fields = list(islice(walker.fields(message.start, message.stop), MAX_TENSOR_FIELDS + 1))
    if len(fields) > MAX_TENSOR_FIELDS:
        raise walker.wrong(message.start, f"at most {MAX_TENSOR_FIELDS} fields", "more")
    names = [walker.text(found) for found in fields if found.number == 8]
    if len(names) != 1 or not names[0] or "\0" in names[0]:
        raise walker.wrong(message.start, "an initializer with one name", f"{names!s:.80}")
    tensor = _Tensor(f"{walker.where} ({shown(names[0])})", names[0])
    seen: set[int] = set()
    for found in fields:
        if found.number in (2, 9, 14) and found.number in seen:
            raise _wrong(tensor, "each field once", f"field {found.number} twice")
        seen.add(found.number)
        _take(walker, tensor, found)
    return tensor


def _take(walker: Walker, tensor: _Tensor, found: Field) -> None:
    """Notes what one field says about a tensor."""
    match found.number, found.wire:
        case 1, 0 | 2:
            for n in walker.numbers(found):
                if n >= 1 << 60 or len(tensor.dims) == MAX_AXES:
                    raise _wrong(tensor, f"at most {MAX_AXES} axes of at least 0", "others")
                tensor.dims.append(n)
        case 2, 0:
            tensor.data_type = found.value
        case 3, _:
            tensor.is_segment = True
        case 9, 2:
            tensor.raw = found
        case 13, 2:
            key, value = _entry(walker, tensor, found)
            if key in tensor.external:
                raise _wrong(tensor, "each entry of external_data once", f"{key!r:.80} twice")
            tensor.external[key] = value
        case 14, 0 if found.value in (0, 1):
            tensor.is_external = bool(found.value)
        case ((4 | 5 | 6 | 7 | 10 | 11), _):
            tensor.typed.append(found)
        case ((8 | 12 | 16), 2):  # name, text for people, metadata
            pass
        case _:
            raise _wrong(tensor, "fields of a TensorProto", f"field {found.number}")


def _entry(walker: Walker, tensor: _Tensor, message: Field) -> tuple[str, str]:
    """Key and value of a StringStringEntryProto."""
    texts = {f.number: walker.text(f, 4096) for f in walker.fields(message.start, message.stop)}
    if not texts.keys() <= {1, 2}:
        raise _wrong(tensor, "a key and a value", f"the fields {sorted(texts)}")
    return texts.get(1, ""), texts.get(2, "")


def _typed(model: _Model, tensor: _Tensor, element: ElementType, n_bytes: int) -> Extent | Held:
    """Data in a field of their type: as they lie in memory, or as varints, which are decoded."""
    number = tensor.typed[0].number
    if any(found.number != number for found in tensor.typed):
        raise _wrong(tensor, "data of one type", "several")
    fixed = element.name in FIXED.get(number, ())
    if not fixed and element.name not in VARINTS.get(number, ()):
        raise _wrong(tensor, f"data of {element}", f"the field {number} of another type")
    if fixed and len(tensor.typed) == 1 and tensor.typed[0].wire == BYTES:
        found = tensor.typed[0]
        if found.stop - found.start != n_bytes:
            raise _wrong(tensor, f"{n_bytes} bytes", f"{found.stop - found.start}")
        return Extent(model.path, found.start)
    model.held_left -= n_bytes
    if model.held_left < 0:
        raise _wrong(
            tensor, f"at most {MAX_HELD_BYTES >> 20} MiB of numbers that are not raw_data", "more"
        )
    if fixed:
        data = b"".join(model.walker.bytes(found.start, found.stop) for found in tensor.typed)
    else:
        data = _varints(model.walker, tensor, element, n_bytes)
    if len(data) != n_bytes:
        raise _wrong(tensor, f"{n_bytes} bytes", f"{len(data)}")
    return Held(data)


def _varints(walker: Walker, tensor: _Tensor, element: ElementType, n_bytes: int) -> bytes:
    """Varints as elements, each of which must hold its number."""
    n = n_bytes // element.n_bytes
    bits = 8 * element.n_bytes
    values: list[int] = []
    for found in tensor.typed:
        if found.wire not in (VARINT, BYTES):
            raise _wrong(tensor, "numbers of variable length", f"wire type {found.wire}")
        for value in walker.numbers(found):
            if len(values) == n:
                raise _wrong(tensor, f"{n} numbers", "more")
            if element.name.startswith("I") and value >= 1 << 63:
                value -= 1 << 64  # a negative number
                if value < -(1 << bits - 1):
                    raise _wrong(tensor, f"numbers of {bits} bits", f"{value}")
            elif value >= 1 << bits:
                raise _wrong(tensor, f"numbers of {bits} bits", f"{value}")
            values.append(value % (1 << bits))
    return np.array(values, np.uint64).astype(f"<u{element.n_bytes}").tobytes()


def _external(model: _Model, tensor: _Tensor, n_bytes: int) -> Extent:
    """Data in a file beside the model."""
    unknown = tensor.external.keys() - {"location", "offset", "length", "checksum", "basepath"}
    location = tensor.external.get("location", "")
    if unknown or not location:
        raise _wrong(
            tensor, "a location, an offset and a length", f"{sorted(tensor.external)!s:.80}"
        )
    path = _beside(model.path, location, tensor)
    if path not in model.files:
        model.files[path] = FileIdentity.of(path)
    size = model.files[path].n_bytes
    offset = _number(tensor, "offset", 0)
    length = _number(tensor, "length", max(size - offset, 0))
    if length != n_bytes or offset + length > size:
        raise _wrong(
            tensor, f"{n_bytes} bytes in {shown(location, 80)}, which has {size}",
            f"{length} at byte {offset}",
        )  # fmt: skip
    return Extent(path, offset)


def _number(tensor: _Tensor, key: str, otherwise: int) -> int:
    text = tensor.external.get(key)
    if text is None:
        return otherwise
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise _wrong(tensor, f"a number as {key}", f"{text!r:.40}")
    return int(text)


def _beside(model: Path, location: str, tensor: _Tensor) -> Path:
    """The file that a location names, under the folder of the model.

    Links of the Hugging Face cache, from `snapshots/<revision>` to `blobs`, are followed.
    Raises: InputError for any other place, since the model may come from anywhere.
    """
    steps = Path(location).parts
    is_bad = "\0" in location or "\\" in location or ".." in steps or not steps
    if is_bad or Path(location).is_absolute():
        raise _wrong(tensor, "a file in the folder of the model", f"{location!r:.120}")
    path = model.parent / location
    home, found = (Path(os.path.realpath(p)) for p in (model.parent, path))
    caches = [p.parent / "blobs" for p in (home, *home.parents) if p.name == "snapshots"]
    if not any(found.is_relative_to(root) for root in (home, *caches)):
        raise _wrong(tensor, "a file in the folder of the model", f"a link to {found!s:.120}")
    try:
        is_file = path.is_file()
    except OSError as error:
        raise _wrong(tensor, f"the file {location!r:.120}", f"{error.strerror}") from error
    if not is_file:
        raise _wrong(tensor, f"the file {location!r:.120} beside the model", "none")
    return path


def _wrong(tensor: _Tensor, expected: str, got: str) -> InputError:
    return InputError(
        f"{tensor.where}: expected {expected}, got {got}",
        hint="download or write the model again, with its data files",
    )
