"""What `.zarray` (zarr 2) and `zarr.json` (zarr 3) say about one array.

Source: the Zarr storage specification, version 2 and version 3 (sharding: ZEP 2).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from lockstep.errors import InputError
from lockstep.formats.leaf import ELEMENT_TYPES, ElementType

_V3_NAMES = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "uint16": "U16", "int16": "I16",
    "uint32": "U32", "int32": "I32", "uint64": "U64", "int64": "I64",
    "float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64",
    "complex64": "C64", "complex128": "C128",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ", "float8_e8m0fnu": "F8_E8M0",
}  # fmt: skip
_V2_NAMES = {
    "b1": "BOOL", "u1": "U8", "i1": "I8", "u2": "U16", "i2": "I16", "u4": "U32", "i4": "I32",
    "u8": "U64", "i8": "I64", "f2": "F16", "f4": "F32", "f8": "F64", "c8": "C64", "c16": "C128",
}  # fmt: skip
# Types that safetensors has no name for. A number of four bits has a byte of its own here.
_MORE = {
    "float8_e4m3b11fnuz": ElementType("F8_E4M3B11FNUZ", 1),
    "int4": ElementType("I4_IN_BYTE", 1),
    "uint4": ElementType("U4_IN_BYTE", 1),
}
_KEYS_3 = {
    "zarr_format", "node_type", "shape", "data_type", "chunk_grid", "chunk_key_encoding",
    "fill_value", "codecs", "attributes", "dimension_names", "storage_transformers",
}  # fmt: skip
_SETTINGS = {
    "bytes": {"endian"}, "zstd": {"level", "checksum"}, "gzip": {"level"}, "crc32c": set(),
    "transpose": {"order"}, "blosc": {"cname", "clevel", "shuffle", "typesize", "blocksize"},
    "sharding_indexed": {"chunk_shape", "codecs", "index_codecs", "index_location"},
}  # fmt: skip
_MAX_AXES = 32
_MAX_ELEMENTS = 1 << 62
_MEND = "write the checkpoint again, or read it with the library that wrote it"


@dataclass(frozen=True, slots=True)
class ZarrArray:
    """One array: its elements, its grid of chunks, and how a chunk becomes bytes.

    `chunk` is the shape of what is decoded at once; `shard` that of what one key holds, where
    several chunks lie under one key. `fills_zero` is whether a chunk that was left out is zeros.
    `unusual` names a codec that only tensorstore decodes.
    """

    version: int
    shape: tuple[int, ...]
    element: ElementType
    chunk: tuple[int, ...]
    compressor: str  # "none", "zstd", "gzip" or "zlib"; meaningless where `unusual`
    level: int
    prefix: str  # of a chunk's key: "" or "c"
    separator: str
    big_endian: bool = False
    fortran: bool = False
    shard: tuple[int, ...] | None = None
    index_at_end: bool = True
    index_checked: bool = False
    frame_checked: bool = False
    fills_zero: bool = False
    unusual: str = ""

    @property
    def grid(self) -> tuple[int, ...]:
        """How many chunks there are along each axis."""
        return tuple(-(-n // c) for n, c in zip(self.shape, self.chunk, strict=True))

    @property
    def stored(self) -> tuple[int, ...]:
        """The shape of what one key holds."""
        return self.shard or self.chunk

    @property
    def stored_grid(self) -> tuple[int, ...]:
        """How many keys there are along each axis."""
        return tuple(-(-n // c) for n, c in zip(self.shape, self.stored, strict=True))

    @property
    def chunk_bytes(self) -> int:
        """The bytes of one decoded chunk, with the padding of one at the end."""
        return prod(self.chunk) * self.element.n_bytes

    def key(self, index: tuple[int, ...]) -> str:
        """The key, below the array's own, of the chunk or shard at a place of `stored_grid`."""
        numbers = [str(i) for i in index]
        if self.prefix:
            return self.separator.join([self.prefix, *numbers])
        return self.separator.join(numbers) or "0"

    def first_missing(self, keys: set[str]) -> str | None:
        """The first chunk or shard that has no key; looks at one more than there are keys."""
        for i in range(min(prod(self.stored_grid), len(keys) + 1)):
            key = self.key(index_of(i, self.stored_grid))
            if key not in keys:
                return key
        return None


def index_of(i: int, grid: tuple[int, ...]) -> tuple[int, ...]:
    """The place of the i-th cell of a grid, however large, in C order."""
    index = []
    for n in reversed(grid):
        i, place = divmod(i, n)
        index.append(place)
    return tuple(reversed(index))


def parse_zarr(document: dict[str, Any], where: str) -> ZarrArray:
    """The array that `.zarray` or `zarr.json` describes.

    Raises: InputError naming what is wrong, or what cannot be read.
    """
    version = document.get("zarr_format")
    if version == 2:
        return _parse_2(document, where)
    if version == 3:
        return _parse_3(document, where)
    raise InputError(f"{where}: expected zarr_format 2 or 3, got {version!r:.80}", hint=_MEND)


def _parse_2(document: dict[str, Any], where: str) -> ZarrArray:
    shape, chunk = _shapes(document.get("shape"), document.get("chunks"), where)
    element, big_endian = _element_2(document.get("dtype"), where)
    if document.get("filters"):
        raise InputError(
            f"{where}: expected no filters, got {document['filters']!r:.200}",
            hint="write the array again without filters",
        )
    order = document.get("order")
    if order not in ("C", "F"):
        raise InputError(f"{where}: order: expected 'C' or 'F', got {order!r:.80}", hint=_MEND)
    separator = document.get("dimension_separator", ".")
    if separator not in (".", "/"):
        raise InputError(f"{where}: expected '.' or '/' between the parts of a key, "
                         f"got {separator!r:.80}", hint=_MEND)  # fmt: skip
    compressor, level = _compressor(document.get("compressor"), "id", where)
    return ZarrArray(
        version=2, shape=shape, element=element, chunk=chunk, compressor=compressor, level=level,
        prefix="", separator=separator, big_endian=big_endian,
        fortran=order == "F" and len(shape) > 1,
        fills_zero=_is_zero(document.get("fill_value")),
        unusual="" if compressor in ("none", "zstd", "gzip", "zlib") else compressor,
    )  # fmt: skip


def _parse_3(document: dict[str, Any], where: str) -> ZarrArray:
    for key in document.keys() - _KEYS_3:
        extension = document[key]
        if not (isinstance(extension, dict) and extension.get("must_understand") is False):
            raise _no_such_key(key, where)
    if document.get("node_type") != "array":
        raise InputError(f"{where}: expected an array, got {document.get('node_type')!r:.80}",
                         hint=_MEND)  # fmt: skip
    grid = document.get("chunk_grid")
    if not isinstance(grid, dict) or grid.get("name") != "regular":
        raise InputError(f"{where}: expected a regular chunk grid, got {grid!r:.120}", hint=_MEND)
    if document.get("storage_transformers"):
        raise InputError(f"{where}: expected no storage transformers, got "
                         f"{document['storage_transformers']!r:.120}", hint=_MEND)  # fmt: skip
    shape, stored = _shapes(document.get("shape"), _setting(grid, "chunk_shape"), where)
    element = _element_3(document.get("data_type"), where)
    prefix, separator = _key_encoding(document.get("chunk_key_encoding"), where)
    codecs = _codecs(document.get("codecs"), where)
    chunk, shard, at_end, checked = stored, None, True, False
    if codecs[0]["name"] == "sharding_indexed":
        outer = codecs[0]
        _, chunk = _shapes(shape, _setting(outer, "chunk_shape"), where)
        if len(codecs) > 1 or any(s % c for s, c in zip(stored, chunk, strict=True)):
            raise InputError(f"{where}: expected shards of whole chunks and no codec after them, "
                             f"got {codecs!r:.200}", hint=_MEND)  # fmt: skip
        shard, codecs = stored, _codecs(_setting(outer, "codecs"), where)
        at_end = _setting(outer, "index_location") in (None, "end")
        names = [c["name"] for c in _codecs(_setting(outer, "index_codecs"), where)]
        if names not in (["bytes"], ["bytes", "crc32c"]):
            raise InputError(f"{where}: index of shards: expected bytes and crc32c, got {names}",
                             hint=_MEND)  # fmt: skip
        checked = names[-1] == "crc32c"
    endian = _setting(codecs[0], "endian")
    if endian not in (None, "little", "big"):
        raise InputError(f"{where}: endian: expected little or big, got {endian!r:.80}", hint=_MEND)
    compressor, level, unusual = _pipeline(codecs, where)
    return ZarrArray(
        version=3, shape=shape, element=element, chunk=chunk, compressor=compressor, level=level,
        prefix=prefix, separator=separator, big_endian=endian == "big", shard=shard,
        index_at_end=at_end, index_checked=checked,
        frame_checked=bool(_setting(codecs[-1], "checksum")),
        fills_zero=_is_zero(document.get("fill_value")), unusual=unusual,
    )  # fmt: skip


def _is_zero(fill: Any) -> bool:
    """Whether a fill value is bits of zero, which -0.0 is not; where none is given all is kept."""
    parts = fill if isinstance(fill, list) and fill else [fill]
    return all(p is False or repr(p) in ("0", "0.0") for p in parts)


def _pipeline(codecs: list[dict[str, Any]], where: str) -> tuple[str, int, str]:
    """The compressor, its level, and the codec that is neither it nor `bytes`."""
    names = [codec["name"] for codec in codecs]
    if names == ["bytes"]:
        return "none", 0, ""
    if len(names) == 2 and names[0] == "bytes" and names[1] in ("zstd", "gzip"):
        compressor, level = _compressor(
            {"name": names[1], "level": _setting(codecs[1], "level")}, "name", where
        )
        return compressor, level, ""
    if "sharding_indexed" in names:
        raise InputError(f"{where}: expected at most one level of shards, got {names}", hint=_MEND)
    return "none", 0, next(name for name in names if name != "bytes")


def _codecs(found: Any, where: str) -> list[dict[str, Any]]:
    if (
        not isinstance(found, list)
        or not found
        or not all(isinstance(c, dict) and isinstance(c.get("name"), str) for c in found)
    ):
        raise InputError(f"{where}: expected a list of codecs, got {found!r:.120}", hint=_MEND)
    for codec in found:
        settings = codec.get("configuration", {})
        unknown = [*(codec.keys() - {"name", "configuration"})]
        if isinstance(settings, dict):
            unknown += settings.keys() - _SETTINGS.get(codec["name"], settings.keys())
        if unknown or not isinstance(settings, dict):
            raise _no_such_key(f"{codec['name']}: {unknown or settings!s}", where)
    return found


def _no_such_key(key: str, where: str) -> InputError:
    return InputError(f"{where}: expected no other members, got {key!r:.120}", hint=_MEND)


def _setting(codec: dict[str, Any], name: str) -> Any:
    settings = codec.get("configuration")
    return settings.get(name) if isinstance(settings, dict) else None


def _compressor(found: Any, tag: str, where: str) -> tuple[str, int]:
    if found is None:
        return "none", 0
    name = found.get(tag) if isinstance(found, dict) else None
    if not isinstance(name, str):
        raise InputError(f"{where}: expected a compressor, got {found!r:.120}", hint=_MEND)
    level = found.get("level")
    return name, level if isinstance(level, int) else 0


def _key_encoding(found: Any, where: str) -> tuple[str, str]:
    name = found.get("name") if isinstance(found, dict) else None
    if name not in ("default", "v2"):
        raise InputError(f"{where}: expected the keys of chunks to be 'default' or 'v2', "
                         f"got {found!r:.120}", hint=_MEND)  # fmt: skip
    separator = _setting(found, "separator") or ("/" if name == "default" else ".")
    if separator not in (".", "/"):
        raise InputError(f"{where}: expected '.' or '/' between the parts of a key, "
                         f"got {separator!r:.80}", hint=_MEND)  # fmt: skip
    return ("c" if name == "default" else ""), separator


def _shapes(shape: Any, chunk: Any, where: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    for name, numbers, least in (("shape", shape, 0), ("chunks", chunk, 1)):
        if (
            not isinstance(numbers, list | tuple)
            or len(numbers) > _MAX_AXES
            or not all(type(n) is int and least <= n < _MAX_ELEMENTS for n in numbers)
            or prod(numbers) > _MAX_ELEMENTS
        ):
            raise InputError(
                f"{where}: {name}: expected sizes from {least}, got {numbers!r:.120}", hint=_MEND
            )
    if len(shape) != len(chunk):
        raise InputError(f"{where}: expected chunks with {len(shape)} axes, got {len(chunk)}",
                         hint=_MEND)  # fmt: skip
    return tuple(shape), tuple(chunk)


def _element_2(found: Any, where: str) -> tuple[ElementType, bool]:
    if isinstance(found, str):
        if found[:1] in "<>|" and found[1:] in _V2_NAMES:
            element = ELEMENT_TYPES[_V2_NAMES[found[1:]]]
            return element, found[0] == ">" and element.n_bytes > 1
        if found in _MORE or found.startswith(("bfloat16", "float8_")):
            return _element_3(found, where), False
    raise _no_such_type(found, where)


def _element_3(found: Any, where: str) -> ElementType:
    if isinstance(found, str) and found in _V3_NAMES:
        return ELEMENT_TYPES[_V3_NAMES[found]]
    if isinstance(found, str) and found in _MORE:
        return _MORE[found]
    raise _no_such_type(found, where)


def _no_such_type(found: Any, where: str) -> InputError:
    return InputError(
        f"{where}: expected numbers of one type, got elements of type {found!r:.120}",
        hint="leave this leaf out of the checkpoint, or store it as numbers",
    )
