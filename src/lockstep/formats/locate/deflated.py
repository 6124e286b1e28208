"""A deflated member of an archive, decoded from its beginning to its end in bounded memory."""

from __future__ import annotations

import threading
import zlib
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lockstep.errors import InputError
from lockstep.formats.locate.bounded import opened

MAX_RATIO = 1032  # deflate cannot pack tighter
_PIECE_BYTES = 256 << 10
_STATE_BYTES = 64 << 10  # zlib's window and tables


@dataclass(frozen=True, slots=True)
class Packed:
    """Where the deflated bytes of a member lie, and what they must decode to."""

    file: Path
    offset: int
    n_packed: int
    n_bytes: int
    crc32: int
    where: str


class Inflater:
    """A stream over the decoded bytes, which checks length and CRC-32 when it reaches the end."""

    def __init__(self, packed: Packed) -> None:
        self._packed = packed
        self._zlib = zlib.decompressobj(-zlib.MAX_WBITS)
        self._pending = b""
        self._n_read = 0
        self._crc32 = 0
        self.position = 0

    def take(self, n: int) -> bytes:
        """The next bytes, so many unless the end comes before.

        Raises: InputError if the stream is damaged, too short or too long.
        """
        n = min(n, self._packed.n_bytes - self.position)
        out = bytearray()
        while len(out) < n and (piece := self._decode(n - len(out))):
            out += piece
        self.position += len(out)
        if len(out) < n:
            raise self._wrong(f"{self._packed.n_bytes} bytes", f"{self.position}")
        self._crc32 = zlib.crc32(out, self._crc32)
        if self.position == self._packed.n_bytes:
            self._check_end()
        return bytes(out)

    def _decode(self, n: int) -> bytes:
        while not self._zlib.eof:
            self._pending = self._pending or self._next_packed()
            try:
                out = self._zlib.decompress(self._pending, n)
            except zlib.error as error:
                raise self._wrong("a deflated stream", str(error)) from error
            ended = not self._pending
            self._pending = self._zlib.unconsumed_tail
            if out or ended:
                return out
        return b""

    def _next_packed(self) -> bytes:
        packed = self._packed
        with opened(packed.file) as (file, _):
            file.seek(packed.offset + self._n_read)
            raw = file.read(min(_PIECE_BYTES // 4, packed.n_packed - self._n_read))
        self._n_read += len(raw)
        return raw

    def _check_end(self) -> None:
        if self._decode(1):
            raise self._wrong(f"{self._packed.n_bytes} bytes", "more")
        if not self._zlib.eof:
            raise self._wrong("the end of the deflated stream", "none")
        if self._zlib.unused_data or self._n_read != self._packed.n_packed:
            raise self._wrong("nothing behind the deflated stream", "more")
        if self._crc32 != self._packed.crc32:
            raise self._wrong(f"CRC-32 {self._packed.crc32:08x}", f"{self._crc32:08x}")

    def _wrong(self, expected: str, got: str) -> InputError:
        return InputError(
            f"{self._packed.where}: expected {expected}, got {got}",
            hint="write or download the file again: it is damaged",
        )


@dataclass(slots=True, eq=False)
class DeflatedChunks:
    """The elements behind the first `skip` bytes of a member, in chunks of a sequential grid.

    In C order the chunks are `flat`; in Fortran order they are slabs along the last axis, which is
    how such elements follow each other.
    """

    packed: Packed
    skip: int
    whole: tuple[int, ...]
    item_bytes: int
    swap_bytes: int  # of the number whose bytes are turned, for big-endian; 0 for little
    fortran: bool
    shape: tuple[int, ...]
    flat: bool
    peak_bytes: int
    sequential: bool = True
    _stream: Inflater | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def read(self, index: tuple[int, ...], out: NDArray[np.uint8]) -> None:
        """Decodes one chunk into `out`.

        Raises: InputError if the member is damaged.
        """
        begin = self.skip + index[-1] * prod(self.shape) * self.item_bytes
        raw_shape = self._cut(index[-1])
        flat_out = out.reshape(-1)
        assert flat_out.size == prod(raw_shape) * self.item_bytes, "a chunk cut at the leaf's end"
        target = np.empty_like(flat_out) if self.fortran else flat_out
        with self._lock:
            self._fill(begin, target)
        if self.swap_bytes > 1:
            target.reshape(-1, self.swap_bytes)[:] = target.reshape(-1, self.swap_bytes)[:, ::-1]
        if self.fortran:
            turned = target.reshape(*raw_shape[::-1], self.item_bytes)
            n_axes = len(raw_shape)
            in_c_order = turned.transpose(*range(n_axes - 1, -1, -1), n_axes)
            flat_out.reshape(*raw_shape, self.item_bytes)[...] = in_c_order

    def _cut(self, i: int) -> tuple[int, ...]:
        """The shape of a chunk along the only axis, or the last one."""
        last = prod(self.whole) if self.flat else self.whole[-1]
        return (*self.shape[:-1], min(self.shape[-1], last - i * self.shape[-1]))

    def _fill(self, begin: int, target: NDArray[np.uint8]) -> None:
        if self._stream is None or self._stream.position > begin:
            self._stream = Inflater(self.packed)
        stream, at = self._stream, 0
        self._stream = None  # a stream that fails is not taken up again
        while stream.position < begin:
            stream.take(min(_PIECE_BYTES, begin - stream.position))
        while at < target.size:
            raw = stream.take(min(_PIECE_BYTES, target.size - at))
            target[at : at + len(raw)] = np.frombuffer(raw, dtype=np.uint8)
            at += len(raw)
        self._stream = stream


def deflated_chunks(
    packed: Packed,
    skip: int,
    whole: tuple[int, ...],
    item_bytes: int,
    *,
    swap_bytes: int,
    fortran: bool,
    chunk_elements: int,
) -> DeflatedChunks:
    """The chunks of a member, of about `chunk_elements` each."""
    slab = prod(whole[:-1])
    n = min(whole[-1], max(1, chunk_elements // slab)) if fortran else chunk_elements
    shape = (*whole[:-1], n) if fortran else (min(n, prod(whole)),)
    scratch = 2 * prod(shape) * item_bytes if fortran or swap_bytes > 1 else 0
    return DeflatedChunks(
        packed=packed,
        skip=skip,
        whole=whole,
        item_bytes=item_bytes,
        swap_bytes=swap_bytes,
        fortran=fortran,
        shape=shape,
        flat=not fortran,
        peak_bytes=3 * _PIECE_BYTES + _STATE_BYTES + scratch,
    )
