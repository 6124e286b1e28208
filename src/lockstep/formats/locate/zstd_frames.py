"""Whether zstd data ends where a frame ends: the decoder itself is silent about a missing end.

Source: RFC 8878, sections 3.1.1 and 3.1.2.
"""

from __future__ import annotations

from typing import Protocol

_MAGIC, _SKIPPABLE = 0xFD2FB528, 0x184D2A50
_RAW, _RLE, _COMPRESSED = 0, 1, 2


class Source(Protocol):
    """What compressed bytes come from."""

    def read(self, n_bytes: int) -> bytes:
        """At most so many bytes; none at the end."""


class ZstdFrames:
    """A source of zstd data that follows the frames and blocks in it."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._head = b""  # of the header that comes next
        self._skip = 0  # bytes to pass over before it
        self._in_frame = False
        self._checksum = False
        self._last = False
        self.is_sound = True  # as far as headers tell; the decoder says what is wrong

    @property
    def is_whole(self) -> bool:
        """Whether what was read ends with a frame."""
        return self.is_sound and not (self._in_frame or self._head or self._skip)

    def read(self, n_bytes: int) -> bytes:
        """At most so many bytes; none at the end."""
        found = self._source.read(n_bytes)
        at = 0
        while at < len(found) and self.is_sound:
            if self._skip:
                step = min(self._skip, len(found) - at)
                self._skip -= step
                at += step
                self._leave()
                continue
            self._head += found[at : at + 1]
            at += 1
            if len(self._head) == self._wanted():
                self._take(self._head)
                self._head = b""
        return found

    def _wanted(self) -> int:
        """How long the header is that these bytes begin."""
        if self._in_frame:
            return 3
        if len(self._head) < 5:
            return 5
        if _is_skippable(self._head):
            return 8
        flags = self._head[4]
        single = flags >> 5 & 1
        return 5 + (1 - single) + (0, 1, 2, 4)[flags & 3] + (single, 2, 4, 8)[flags >> 6]

    def _take(self, head: bytes) -> None:
        if self._in_frame:
            word = int.from_bytes(head, "little")
            self._last, kind, size = bool(word & 1), word >> 1 & 3, word >> 3
            self.is_sound = kind in (_RAW, _RLE, _COMPRESSED)
            self._skip = 1 if kind == _RLE else size
            self._skip += 4 * (self._last and self._checksum)
            self._leave()
        elif _is_skippable(head):
            self._skip = int.from_bytes(head[4:8], "little")
        else:
            self.is_sound = int.from_bytes(head[:4], "little") == _MAGIC
            self._in_frame, self._checksum = True, bool(head[4] & 4)
            self._last = False

    def _leave(self) -> None:
        """Ends the frame behind its last block."""
        if self._last and not self._skip:
            self._in_frame = self._last = False


def _is_skippable(head: bytes) -> bool:
    return int.from_bytes(head[:4], "little") & ~0xF == _SKIPPABLE
