"""Weights in a program's arena: packed for its kernels once, after that read from a cache."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from io import FileIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lockstep.build import pack_weight, packing_fingerprint
from lockstep.errors import InputError
from lockstep.formats.dequantise import is_finite
from lockstep.ir import CacheKind
from lockstep.native import Manifest, Program
from lockstep.native.library import build_directory

Bytes = NDArray[np.uint8]

SUM_BYTES = 8 << 20  # of weights that have a sum of their own
_CHUNK_BYTES = 8 * SUM_BYTES
_READERS = 2  # one core does not copy as fast as memory goes
_SPARE_BYTES = 1 << 30  # of the disk, which the cache leaves free
_MOST_BYTES = 16 << 30  # of all packed weights; those that were not used for longest go first
_PACKING = "packing-"  # how a folder begins in which weights are being written
_LEFT_S = 24 * 3600.0  # no writing takes so long: its process was killed


class StoredParameters(Protocol):
    """The parameters of a model as a file stores them."""

    def stored(self, id: str) -> str:
        """The type of a parameter's elements in the file."""

    def name(self, id: str) -> str:
        """What the file calls a parameter."""

    def f32(self, id: str) -> NDArray[Any]:
        """A parameter as float32."""

    def has_rows(self, id: str) -> bool:
        """Whether it is a matrix whose rows the file holds as they are."""

    def rows(self, id: str) -> Bytes:
        """The bytes of each row of a matrix."""


def packed_type(parameters: StoredParameters, id: str) -> str:
    """In which type a weight is packed: that of the file, if its rows can be taken as they are."""
    return parameters.stored(id) if parameters.has_rows(id) else "F32"


def usual_cache(parameters: StoredParameters, shapes: Mapping[str, tuple[int, ...]]) -> CacheKind:
    """How keys and values are kept unless somebody asks: as exactly as the weights."""
    types = {parameters.stored(id) for id, shape in shapes.items() if len(shape) > 1}
    return "f32" if types == {"F32"} else "f16"


@dataclass(frozen=True, slots=True)
class InMemory:
    """Parameters in memory, all float32."""

    arrays: Mapping[str, NDArray[Any]]

    def stored(self, id: str) -> str:
        """Always F32."""
        return "F32"

    def name(self, id: str) -> str:
        """The id: it is of no file."""
        return id

    def f32(self, id: str) -> NDArray[Any]:
        """A parameter."""
        return self.arrays[id]

    def has_rows(self, id: str) -> bool:
        """Whether it is a matrix."""
        return self.arrays[id].ndim == 2

    def rows(self, id: str) -> Bytes:
        """The bytes of each row of a matrix."""
        return np.ascontiguousarray(self.arrays[id], "<f4").view(np.uint8)


@dataclass(frozen=True, slots=True)
class Filled:
    """How the weights came into the arena, and how many bytes they take there."""

    from_cache: bool
    n_bytes: int


def fill_parameters(
    program: Program,
    parameters: StoredParameters,
    formats: Mapping[str, str],
    *,
    shapes: Mapping[str, tuple[int, ...]],
    content: str,
    where: str,
) -> Filled:
    """Puts all parameters into the program's arena.

    `formats` says how the weights that are packed are stored; `content` identifies the bytes of the
    model's file, under which the packed arena is kept for the next start.

    Raises: InputError if a parameter cannot be read, or is not finite.
    """
    arena = program.arena("params")
    cache = _Cache(_key(program.manifest, formats, content))
    if cache.read(arena):
        return Filled(True, arena.nbytes)
    expect_finite = partial(_expect_finite, parameters, where)
    _place(program, parameters, formats, shapes, where, expect_finite)
    cache.write(arena)
    return Filled(False, arena.nbytes)


def place_arrays(program: Program, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Puts float32 parameters into the arena of a program that packs its matrices as float32.

    What is not finite in them is for whoever trains them to find.
    """
    values = program.manifest.values
    formats = {id: "F32" for id in arrays if values[id].dtype == "u8"}
    shapes = {id: array.shape for id, array in arrays.items()}
    _place(program, InMemory(arrays), formats, shapes, program.manifest.name)


def _place(
    program: Program,
    parameters: StoredParameters,
    formats: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    where: str,
    expect_finite: Callable[[str, Bytes], None] = lambda id, rows: None,
) -> None:
    for id, value in program.manifest.values.items():
        if value.role != "parameter":
            continue
        view = program.view(id)
        if id in formats:
            rows = _rows(parameters, id)
            expect_finite(id, rows)
            packed = pack_weight(formats[id], rows, shapes[id][1])
            _expect_size(packed, view, where, id)
            view[...] = packed
        else:
            view[...] = parameters.f32(id)


def expect_readable(parameters: StoredParameters, packed: Mapping[str, bool], where: str) -> None:
    """Refuses what `fill_parameters` would, where there is no program yet.

    `packed` says of each parameter whether the program packs it.

    Raises: InputError.
    """
    for id, is_packed in packed.items():
        if is_packed:
            _expect_finite(parameters, where, id, _rows(parameters, id))
        else:
            parameters.f32(id)


def _rows(parameters: StoredParameters, id: str) -> Bytes:
    held = parameters if parameters.has_rows(id) else InMemory({id: parameters.f32(id)})
    return held.rows(id)


def _expect_finite(parameters: StoredParameters, where: str, id: str, rows: Bytes) -> None:
    stored = packed_type(parameters, id)
    if not is_finite(rows, stored):
        raise InputError(
            f"{where}, {parameters.name(id)}: expected finite numbers, got some of its {stored} "
            "that are not",
            hint="download the model again, or convert it again from the original",
        )


def _expect_size(packed: Bytes, view: Bytes, where: str, id: str) -> None:
    if packed.shape != view.shape:
        raise InputError(
            f"{where} {id}: expected {view.nbytes} packed bytes, got {packed.nbytes}",
            hint="the file changed while it was read: open it again",
        )


def _key(manifest: Manifest, formats: Mapping[str, str], content: str) -> str:
    """What the arena's bytes follow from: the file, its formats, how each is packed, and where.

    The program does not say how: an arena of an older layout would be read as if it were of this.
    """
    places = {
        id: (v.offset, v.dtype, v.dims)
        for id, v in manifest.values.items()
        if v.role == "parameter"
    }
    layouts = {kind: packing_fingerprint(kind) for kind in sorted(set(formats.values()))}
    text = json.dumps([content, sorted(formats.items()), layouts, sorted(places.items())])
    return sha256(text.encode()).hexdigest()[:32]


class _Cache:
    """One packed arena on the disk, with a sum of its words that every read checks."""

    def __init__(self, key: str) -> None:
        self._file = build_directory() / f"{key}.weights"
        self._sums = self._file.with_suffix(".sums")

    def read(self, arena: Bytes) -> bool:
        """Whether the arena now holds what was kept; what is damaged is as if it were not there."""
        try:
            sums = json.loads(self._sums.read_text())
            with self._file.open("rb", buffering=0) as file:
                if os.fstat(file.fileno()).st_size != arena.nbytes:
                    return False
                with ThreadPoolExecutor(_READERS) as pool:
                    found = list(pool.map(partial(_read_all, file), _chunks(arena)))
        except (OSError, EOFError, ValueError):
            return False
        with suppress(OSError):
            os.utime(self._file)  # what was used last is kept longest
        return bool([sum for sums_of_chunk in found for sum in sums_of_chunk] == sums)

    def write(self, arena: Bytes) -> None:
        """Keeps the arena for the next start; a disk without room only costs that start time."""
        directory = self._file.parent
        with suppress(OSError):
            _make_room(directory, arena.nbytes)
            if shutil.disk_usage(directory).free < arena.nbytes + _SPARE_BYTES:
                return
            with tempfile.TemporaryDirectory(dir=directory, prefix=_PACKING) as name:
                made, sums = Path(name) / "weights", Path(name) / "sums"
                with made.open("wb", buffering=0) as file:
                    for _, chunk in _chunks(arena):
                        _write_all(file, chunk.data)
                    os.fsync(file.fileno())
                sums.write_text(json.dumps(word_sums(arena)))
                self._sums.unlink(missing_ok=True)  # a crash between the two leaves no pair
                os.replace(made, self._file)
                os.replace(sums, self._sums)


def _make_room(directory: Path, n_bytes: int) -> None:
    """Deletes the packed weights that were not used for longest, so that so many bytes fit in.

    What a process left that was killed while it wrote goes as well.
    """
    for left in directory.glob(f"{_PACKING}*"):
        with suppress(FileNotFoundError):  # whoever wrote it is done by now
            if left.stat().st_mtime < time.time() - _LEFT_S:
                shutil.rmtree(left, ignore_errors=True)
    kept = sorted(directory.glob("*.weights"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in kept:
        n_bytes += path.stat().st_size
        if n_bytes > _MOST_BYTES:
            path.with_suffix(".sums").unlink(missing_ok=True)
            path.unlink(missing_ok=True)


def _chunks(arena: Bytes) -> Iterator[tuple[int, Bytes]]:
    """Where each chunk begins, and its bytes."""
    for begin in range(0, arena.nbytes, _CHUNK_BYTES):
        yield begin, arena[begin : begin + _CHUNK_BYTES]


def word_sums(arena: Bytes) -> list[int]:
    """The sum of the words of every SUM_BYTES: quick, and no one changed word hides."""
    words, step = arena.view("<u8"), SUM_BYTES // 8
    return [int(np.add.reduce(words[at : at + step])) for at in range(0, len(words), step)]


def _read_all(file: FileIO, place: tuple[int, Bytes]) -> list[int]:
    """Fills a chunk from its place in the file, and sums it up.

    Raises: EOFError if the file ends before.
    """
    begin, chunk = place
    done = 0
    while done < chunk.nbytes:
        n = os.preadv(file.fileno(), [chunk.data[done:]], begin + done)
        if n == 0:
            raise EOFError(begin + done)
        done += n
    return word_sums(chunk)


def _write_all(file: Any, view: memoryview) -> None:
    done = 0
    while done < len(view):
        done += file.write(view[done:])
