"""Text from files that others wrote, made fit for a terminal or a page; sizes, long lists."""

from __future__ import annotations

import re
from collections.abc import Sequence

_NUMBER = re.compile(r"\d+")
_ALL_NAMED, _FIRST_NAMED = 4, 3  # of a long list of names, only the first are written


def printable(text: str) -> str:
    """The text with each sign that does not print (controls, bidirectional marks) as an escape."""
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else _escape(sign) for sign in text)


def _escape(sign: str) -> str:
    return sign.encode("unicode_escape", "surrogatepass").decode("ascii")


def size(n_bytes: float) -> str:
    """Bytes in four digits: `1.5 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.4g} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.4g} TiB"


def names(each: Sequence[str]) -> str:
    """A list of names, short where it is long: `h.{0..11}.w`, or the first three of them."""
    if len(each) <= _ALL_NAMED:
        return ", ".join(map(printable, each))
    run = _run(each)
    if run is not None:
        return printable(run)
    first = ", ".join(map(printable, each[:_FIRST_NAMED]))
    return f"{first} and {len(each) - _FIRST_NAMED} more"


def _run(each: Sequence[str]) -> str | None:
    """Names that are the same but for one number, which goes up by one."""
    moving = []
    for a, b in zip(_NUMBER.finditer(each[0]), _NUMBER.finditer(each[1]), strict=False):
        if a[0] != b[0]:
            moving.append(a)
    if len(moving) != 1:
        return None
    at, start = moving[0], int(moving[0][0])
    before, after = each[0][: at.start()], each[0][at.end() :]
    same = all(name == f"{before}{start + i}{after}" for i, name in enumerate(each))
    return f"{before}{{{start}..{start + len(each) - 1}}}{after}" if same else None
