"""The C sources of ops and the headers that they include, each copied once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lockstep.errors import UsageError

_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*(<[^>]+>|"[^"]+")[^\n]*$', re.MULTILINE)
# What the program around the kernels needs itself.
OWN_HEADERS = (
    "<pthread.h>", "<stdatomic.h>", "<stddef.h>", "<stdint.h>", "<time.h>", "<unistd.h>",
)  # fmt: skip

# Headers that only some machines have stay where they are, under their conditions.
_CONDITIONAL = ("<immintrin.h>", "<arm_neon.h>")


@dataclass(frozen=True, slots=True)
class Source:
    """A piece of C text and the file that it is a copy of."""

    file: str
    text: str


@dataclass(frozen=True, slots=True)
class Sources:
    """What goes on top of a program: system headers, then own headers before their users."""

    system: tuple[str, ...]
    pieces: tuple[Source, ...]


def gather(pieces: Iterable[Source], headers: Mapping[str, str]) -> Sources:
    """The pieces with their own headers in front, and without their #include lines.

    The lines stay, empty, so that line numbers are those of the files.

    Raises: UsageError if a piece includes a header that was not given.
    """
    system = dict.fromkeys(OWN_HEADERS)
    ordered: dict[str, Source] = {}

    def visit(piece: Source) -> None:
        if piece.file in ordered:
            return
        for name in _INCLUDE.findall(piece.text):
            if name.startswith("<"):
                if name not in _CONDITIONAL:
                    system[name] = None
                continue
            file = name.strip('"')
            if file not in headers:
                raise UsageError(f"{piece.file}: expected a header of ops/, got {file!r}")
            visit(Source(f"ops/{file}", headers[file]))
        ordered[piece.file] = Source(piece.file, _without_includes(piece.text))

    for piece in pieces:
        visit(piece)
    return Sources(tuple(sorted(system)), tuple(ordered.values()))


def _without_includes(text: str) -> str:
    def blank(match: re.Match[str]) -> str:
        return match[0] if match[1] in _CONDITIONAL else ""

    return _INCLUDE.sub(blank, text)
