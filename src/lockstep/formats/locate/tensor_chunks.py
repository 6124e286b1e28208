"""Chunks of arrays in zarr, decoded one at a time or, where one is huge, as a stream."""

from __future__ import annotations

import io
import threading
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockstep.errors import InputError
from lockstep.formats.leaf import Chunks
from lockstep.formats.locate.inflate import Inflated, window_bytes
from lockstep.formats.locate.keyed_bytes import (
    BLOCK_BYTES,
    TENSORSTORE_ERRORS,
    KeyedBytes,
    Range,
    first_line,
    import_tensorstore,
    small_context,
)
from lockstep.formats.locate.zarr_metadata import ZarrArray, index_of

STREAMED_FROM_BYTES = 16 << 20  # a chunk above this is read as a stream
_PIECE_BYTES = 2 << 20  # what is decoded at once of a stream
_DAMAGED = "restore the checkpoint from a copy; this one is damaged or was cut off"
_NO_CHUNK = (1 << 64) - 1


def chunks_of(
    array: ZarrArray, source: KeyedBytes, prefix: str, name: str, present: set[str] | None = None
) -> Chunks:
    """How the leaf `name`, whose keys begin with `prefix`, is read.

    Where `present` is given, its writer left out chunks of zeros, and has the keys of the others.
    """
    if array.unusual or (array.compressor == "zstd" and not _have_zstandard()):
        return TensorstoreChunks(array, source, prefix, name)
    place = ChunkPlaces(array, source, prefix, name, present)
    if not array.shape or (array.chunk_bytes > STREAMED_FROM_BYTES and _in_flat_order(array)):
        return StreamedChunks(place)
    return BoxChunks(place)


def _have_zstandard() -> bool:
    try:
        import zstandard  # noqa: F401
    except ImportError:
        return False
    return True


def _in_flat_order(array: ZarrArray) -> bool:
    """Whether one chunk after the other holds the elements in C order, padding at the end alone."""
    if array.fortran:
        return False
    split = next((i for i, n in enumerate(array.chunk) if n > 1), len(array.chunk))
    return array.chunk[split + 1 :] == array.shape[split + 1 :]


def rewrite(
    array: ZarrArray, source: KeyedBytes, prefix: str, where: str, words: NDArray[Any]
) -> None:
    """Writes all elements of an array over, as its own compression and sharding have it.

    Raises: EnvironmentLacks without tensorstore; InputError if it cannot write this array.
    """
    tensorstore = import_tensorstore(where)
    driver = "zarr" if array.version == 2 else "zarr3"
    spec = {"driver": driver, "kvstore": source.spec(prefix)}
    try:
        context = small_context(tensorstore)
        opened = tensorstore.open(spec, context=context, read=True, write=True, open=True).result()
        opened.write(words.view(opened.dtype.numpy_dtype).reshape(array.shape)).result()
    except TENSORSTORE_ERRORS as error:
        raise InputError(
            f"{where}: cannot be written over: {first_line(error)}",
            hint="write the template in another format, such as safetensors",
        ) from error


class Zeros:
    """A chunk that its writer left out."""

    def __init__(self, n_bytes: int) -> None:
        self._left = n_bytes

    def read(self, n_bytes: int) -> bytes:
        """At most so many bytes; none at the end."""
        n_bytes = min(n_bytes, self._left)
        self._left -= n_bytes
        return bytes(n_bytes)


@dataclass
class ChunkPlaces:
    """Where the bytes of each chunk of one leaf are."""

    array: ZarrArray
    source: KeyedBytes
    prefix: str
    name: str
    present: set[str] | None = None
    _index: dict[str, NDArray[np.uint64]] = field(default_factory=dict)  # of the last shard

    def where(self, index: tuple[int, ...]) -> str:
        """The leaf and the chunk, for messages."""
        return f"{self.source.where}: {self.name}: chunk {index}"

    def rewrite(self, words: NDArray[Any]) -> None:
        """As `rewrite`, for this array."""
        rewrite(self.array, self.source, self.prefix, f"{self.source.where}: {self.name}", words)

    def open(self, index: tuple[int, ...]) -> Inflated:
        """The decoded bytes of one chunk as a stream.

        Raises: InputError if it is missing or damaged.
        """
        array = self.array
        per_key = tuple(s // c for s, c in zip(array.stored, array.chunk, strict=True))
        key = array.key(tuple(i // n for i, n in zip(index, per_key, strict=True)))
        span: tuple[int, int | None] | None = (0, None)
        if self.present is not None and key not in self.present:
            span = None
        elif array.shard is not None:
            span = self._in_shard(self.prefix + key, index, per_key)
        if span is None:
            return Inflated(Zeros(array.chunk_bytes), "none", 0, self.where(index))
        if array.chunk_bytes < BLOCK_BYTES:
            raw: Any = io.BytesIO(self.source.read(self.prefix + key, *span))
        else:
            raw = Range(self.source, self.prefix + key, *span)
        return Inflated(raw, array.compressor, array.level, self.where(index))

    def _in_shard(
        self, key: str, index: tuple[int, ...], per_key: tuple[int, ...]
    ) -> tuple[int, int] | None:
        """Where a chunk lies under its key; None if it is zeros that were left out."""
        table = self._index.get(key)
        if table is None:
            table = self._shard_index(key, prod(per_key))
            self._index = {key: table}
        inner = tuple(i % n for i, n in zip(index, per_key, strict=True))
        row = int(np.ravel_multi_index(inner, per_key)) if per_key else 0
        offset, n_bytes = (int(word) for word in table[row])
        if offset == n_bytes == _NO_CHUNK:
            if self.present is not None:
                return None
            raise InputError(f"{self.where(index)}: expected data, got a chunk that is missing",
                             hint=_DAMAGED)  # fmt: skip
        if offset + n_bytes > 1 << 62:
            raise InputError(f"{self.where(index)}: expected a place in {key}, got byte {offset}",
                             hint=_DAMAGED)  # fmt: skip
        return offset, offset + n_bytes

    def _shard_index(self, key: str, n_chunks: int) -> NDArray[np.uint64]:
        n_bytes = 16 * n_chunks + 4 * self.array.index_checked
        if self.array.index_at_end:
            raw = self.source.read(key, -n_bytes)
        else:
            raw = self.source.read(key, 0, n_bytes)
        table = raw[: 16 * n_chunks]
        if self.array.index_checked and crc32c(table) != int.from_bytes(raw[-4:], "little"):
            raise InputError(
                f"{self.source.where}: {key}: expected an index with CRC-32C "
                f"{int.from_bytes(raw[-4:], 'little'):08x}, got {crc32c(table):08x}",
                hint=_DAMAGED,
            )
        return np.frombuffer(table, "<u8").reshape(n_chunks, 2)

    @property
    def peak_bytes(self) -> int:
        """What a stream takes beside its output: the window, and blocks before and behind it.

        Blocks pass through tensorstore, Python and the decoder; measured at up to 6 MiB.
        """
        array = self.array
        held = min(8 * BLOCK_BYTES, 4 * array.chunk_bytes + (1 << 17))
        window = min(window_bytes(array.compressor, array.level), array.chunk_bytes + (1 << 17))
        index = 16 * prod(array.shard) // max(prod(array.chunk), 1) if array.shard else 0
        return held + window + 2 * index + (1 << 16)


class BoxChunks:
    """Each chunk by itself, on the grid of the array."""

    flat = False
    sequential = False

    def __init__(self, place: ChunkPlaces) -> None:
        self._place = place
        self._array = array = place.array
        self.shape = array.chunk
        self._whole = array.fortran or any(
            n % c for n, c in zip(array.shape, array.chunk, strict=True)
        )
        self.peak_bytes = place.peak_bytes + array.chunk_bytes * self._whole

    def rewrite(self, words: NDArray[Any]) -> None:
        """Writes all elements over.  Raises: InputError if that cannot be done."""
        self._place.rewrite(words)

    def read(self, index: tuple[int, ...], out: NDArray[np.uint8]) -> None:
        """Decodes one chunk into `out`.  Raises: InputError if it is damaged or missing."""
        array = self._array
        cut = tuple(
            min(c, n - i * c) for i, c, n in zip(index, array.chunk, array.shape, strict=True)
        )
        stream = self._place.open(index)
        flat = out.reshape(-1)
        if cut == array.chunk and not array.fortran:
            stream.fill(flat.data)
        else:
            whole = np.empty(array.chunk_bytes, np.uint8)
            stream.fill(whole.data)
            flat[:] = _cut(whole, array, cut).reshape(-1)
        stream.finish()
        _turn(flat, array)


def _cut(whole: NDArray[np.uint8], array: ZarrArray, cut: tuple[int, ...]) -> NDArray[np.uint8]:
    n_bytes = array.element.n_bytes
    if array.fortran:
        axes = (*range(len(cut) - 1, -1, -1), len(cut))
        block = whole.reshape(*array.chunk[::-1], n_bytes).transpose(axes)
    else:
        block = whole.reshape(*array.chunk, n_bytes)
    return block[tuple(slice(n) for n in cut)]


def _turn(flat: NDArray[np.uint8], array: ZarrArray) -> None:
    """Makes big-endian elements little-endian in place; a complex number is two."""
    if array.big_endian:
        width = array.element.n_bytes // (2 if array.element.name in ("C64", "C128") else 1)
        flat.view(f"u{width}").byteswap(inplace=True)


class _OpenStreams(threading.local):
    """The streams that a thread left open and where each is: one for either side of a claim."""

    most = 2

    def __init__(self) -> None:
        self.streams: dict[StreamedChunks, tuple[Inflated, int]] = {}

    def keep(self, chunks: StreamedChunks, stream: Inflated, at: int) -> None:
        """Leaves a stream open, and lets the one go that was used longest ago."""
        while len(self.streams) >= self.most:
            del self.streams[next(iter(self.streams))]
        self.streams[chunks] = stream, at


_open_streams = _OpenStreams()


class StreamedChunks:
    """Huge chunks as one stream over the flat elements; going back starts the stream again.

    Each thread has a stream of its own: on a common one, two that read at different places would
    make each other start again.
    """

    flat = True

    def __init__(self, place: ChunkPlaces) -> None:
        self._place = place
        self._array = array = place.array
        self._n_bytes = prod(array.shape) * array.element.n_bytes
        n_elements = min(prod(array.shape), _PIECE_BYTES // array.element.n_bytes)
        self.shape: tuple[int, ...] = (n_elements,)
        self.sequential = n_elements < prod(array.shape)
        self.peak_bytes = place.peak_bytes

    def rewrite(self, words: NDArray[Any]) -> None:
        """Writes all elements over.  Raises: InputError if that cannot be done."""
        self._place.rewrite(words)

    def read(self, index: tuple[int, ...], out: NDArray[np.uint8]) -> None:
        """Decodes one piece into `out`.  Raises: InputError if it is damaged or missing."""
        flat = out.reshape(-1)
        start = index[0] * self.shape[0] * self._array.element.n_bytes
        left, n_chunk = flat.data, self._array.chunk_bytes
        while len(left):
            stream = self._reach(start)
            n_bytes = min(len(left), n_chunk - start % n_chunk)
            stream.fill(left[:n_bytes])
            left, start = left[n_bytes:], start + n_bytes
            if start % n_chunk == 0 or start == self._n_bytes:
                stream.skip(-start % n_chunk)
                stream.finish()
            else:
                _open_streams.keep(self, stream, start)
        _turn(flat, self._array)

    def _reach(self, start: int) -> Inflated:
        """The stream that yields the byte `start` next: the open one if it is not beyond it."""
        n_chunk = self._array.chunk_bytes
        stream, at = _open_streams.streams.pop(self, (None, 0))
        if stream is None or at > start or at // n_chunk != start // n_chunk:
            at = start - start % n_chunk
            stream = self._place.open(index_of(start // n_chunk, self._array.grid))
        stream.skip(start - at)
        return stream


class TensorstoreChunks:
    """Chunks that only tensorstore can decode."""

    flat = False
    sequential = False

    def __init__(self, array: ZarrArray, source: KeyedBytes, prefix: str, name: str) -> None:
        """Prepares the reading.

        Raises: EnvironmentLacks without tensorstore; InputError if the chunks are apart.
        """
        self._tensorstore = import_tensorstore(f"{source.where}: {name}")
        self._array, self._where = array, f"{source.where}: {name}"
        self._source, self._prefix = source, prefix
        self._spec = {
            "driver": "zarr" if array.version == 2 else "zarr3",
            "kvstore": source.spec(prefix),
            "fill_missing_data_reads": False,
        }
        self._opened: Any = None
        self.shape = array.chunk
        # The compressed chunk, the decoded one, and the copy that is handed over.
        self.peak_bytes = 3 * array.chunk_bytes + (1 << 20)

    def rewrite(self, words: NDArray[Any]) -> None:
        """Writes all elements over.  Raises: InputError if that cannot be done."""
        rewrite(self._array, self._source, self._prefix, self._where, words)

    def read(self, index: tuple[int, ...], out: NDArray[np.uint8]) -> None:
        """Decodes one chunk into `out`.  Raises: InputError if it is damaged or missing."""
        array = self._array
        box = tuple(
            slice(i * c, min((i + 1) * c, n))
            for i, c, n in zip(index, array.chunk, array.shape, strict=True)
        )
        try:
            if self._opened is None:
                context = small_context(self._tensorstore)
                opened = self._tensorstore.open(self._spec, context=context, read=True, open=True)
                self._opened = opened.result()
            found = self._opened[box].read(order="C").result()
        except TENSORSTORE_ERRORS as error:
            raise InputError(f"{self._where}: chunk {index}: cannot be read: {first_line(error)}",
                             hint=_DAMAGED) from error  # fmt: skip
        if found.dtype.itemsize != array.element.n_bytes:
            raise InputError(
                f"{self._where}: expected elements of {array.element}, got {found.dtype}",
                hint="check that tensorstore knows this type",
            )
        out.reshape(-1)[:] = np.ascontiguousarray(found).reshape(-1).view(np.uint8)


_CRC32C = [0] * 256
for _byte in range(256):
    _word = _byte
    for _ in range(8):
        _word = (_word >> 1) ^ (0x82F63B78 if _word & 1 else 0)
    _CRC32C[_byte] = _word


def crc32c(data: bytes) -> int:
    """The CRC-32C of a few bytes.  Source: RFC 3720, appendix B.4."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ _CRC32C[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF
