"""Compressed bytes as a stream that is read from the start, in little memory."""

from __future__ import annotations

import zlib
from typing import Any

from lockstep.errors import InputError
from lockstep.formats.locate.keyed_bytes import import_extra
from lockstep.formats.locate.zstd_frames import Source, ZstdFrames

_DAMAGED = "restore the checkpoint from a copy; this one is damaged or was cut off"
_READ_BYTES = 1 << 20


def window_bytes(compressor: str, level: int) -> int:
    """The most that a decoder may keep: what the levels of zstd use, or the window of deflate."""
    if compressor == "zstd":
        return 1 << (27 if level > 19 else 23)
    return 1 << 16 if compressor in ("gzip", "zlib") else 0


class Inflated:
    """The bytes that a compressed source spells."""

    def __init__(self, source: Source, compressor: str, level: int, where: str) -> None:
        """Begins a stream.

        Raises: EnvironmentLacks if the package for this compressor is not installed.
        """
        self.where = where
        self._file: Any = source
        self._frames: ZstdFrames | None = None
        self._errors: type[Exception] | tuple[type[Exception], ...] = ()
        if compressor == "zstd":
            zstandard = import_extra("zstandard", where)
            decoder = zstandard.ZstdDecompressor(max_window_size=window_bytes("zstd", level))
            self._frames = ZstdFrames(source)
            self._file = decoder.stream_reader(
                self._frames, read_size=_READ_BYTES, read_across_frames=True
            )
            self._errors = zstandard.ZstdError
        elif compressor in ("gzip", "zlib"):
            self._file = _Deflated(source, 31 if compressor == "gzip" else 15)
            self._errors = zlib.error

    def fill(self, out: memoryview) -> None:
        """Fills `out` with the next bytes.

        Raises: InputError if they are damaged, or there are too few.
        """
        done = 0
        while done < len(out):
            found = self._next(len(out) - done)
            if not found:
                raise InputError(
                    f"{self.where}: expected {len(out) - done} more bytes, got the end",
                    hint=_DAMAGED,
                )
            out[done : done + len(found)] = found
            done += len(found)

    def skip(self, n_bytes: int) -> None:
        """Passes over bytes.  Raises: InputError if there are too few."""
        scratch = memoryview(bytearray(min(n_bytes, _READ_BYTES)))
        while n_bytes:
            self.fill(scratch[: min(n_bytes, len(scratch))])
            n_bytes -= min(n_bytes, len(scratch))

    def finish(self) -> None:
        """Insists that this is the end.  Raises: InputError if more follows, or it is damaged."""
        if self._next(1):
            raise InputError(
                f"{self.where}: expected the end of the chunk, got more bytes", hint=_DAMAGED
            )
        if self._frames and not self._frames.is_whole:
            raise InputError(
                f"{self.where}: expected the end of a frame, got a stream that is cut off",
                hint=_DAMAGED,
            )

    def _next(self, n_bytes: int) -> bytes:
        try:
            found: bytes = self._file.read(min(n_bytes, _READ_BYTES))
        except self._errors as error:
            raise InputError(
                f"{self.where}: expected compressed data, got damaged data: {error}",
                hint=_DAMAGED,
            ) from error
        return found


class _Deflated:
    """Deflate with the header and the check of gzip or zlib; members may follow one another."""

    def __init__(self, source: Source, bits: int) -> None:
        self._source, self._bits = source, bits
        self._decoder = zlib.decompressobj(bits)
        self._input = b""

    def read(self, n_bytes: int) -> bytes:
        while True:
            if self._decoder.eof:
                self._input = self._decoder.unused_data or self._source.read(_READ_BYTES)
                if not self._input:
                    return b""
                self._decoder = zlib.decompressobj(self._bits)
            found = self._decoder.decompress(self._input, n_bytes)
            self._input = self._decoder.unconsumed_tail
            if found or self._decoder.eof:
                if found:
                    return found
                continue
            self._input = self._input or self._source.read(_READ_BYTES)
            if not self._input:
                raise zlib.error("the stream is cut off")
