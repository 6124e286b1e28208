"""The grammars inside SVG attributes: path data, lists of numbers, transforms, lengths."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?"
_SEPARATOR = re.compile(r"[ \t\r\n]*,?[ \t\r\n]*")
_NUMBER_AT = re.compile(_NUMBER)
_FLAG_AT = re.compile(r"[01]")
_LENGTH = re.compile(rf"({_NUMBER})(px|pt|pc|mm|cm|in|em|ex|%)?")
_TRANSFORM = re.compile(r"\s*(matrix|translate|scale|rotate|skewX|skewY)\s*\(([^()]*)\)\s*,?")
_N_ARGUMENTS = {"M": 2, "L": 2, "H": 1, "V": 1, "C": 6, "S": 4, "Q": 4, "T": 2, "A": 7, "Z": 0}
_N_TRANSFORM = {
    "matrix": (6,), "translate": (1, 2), "scale": (1, 2), "rotate": (1, 3), "skewX": (1,),
    "skewY": (1,),
}  # fmt: skip


class Command(NamedTuple):
    """One segment of a path: its letter and its arguments."""

    letter: str
    arguments: tuple[float, ...]


def parse_path(text: str) -> list[Command] | None:
    """The segments of path data, None if it breaks the grammar; the empty path has none.

    Source: https://www.w3.org/TR/SVG2/paths.html#PathDataBNF
    """
    commands: list[Command] = []
    at = _skip_space(text, 0)
    while at < len(text):
        letter = text[at]
        if letter.upper() not in _N_ARGUMENTS or (not commands and letter not in "mM"):
            return None
        at = _skip_space(text, at + 1)
        if letter in "zZ":
            commands.append(Command(letter, ()))
            continue
        n_before = len(commands)
        while at < len(text) and not text[at].isalpha():
            read = _arguments(text, at, letter)
            if read is None:
                return None
            arguments, at = read
            commands.append(Command(letter, arguments))
            # Further pairs after a move are lines.
            letter = {"m": "l", "M": "L"}.get(letter, letter)
        if len(commands) == n_before:
            return None
    return commands


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _arguments(text: str, at: int, letter: str) -> tuple[tuple[float, ...], int] | None:
    """The arguments of one segment and where the next one starts."""
    found: list[float] = []
    for i in range(_N_ARGUMENTS[letter.upper()]):
        # The two flags of an arc are single digits that may touch the next number.
        pattern = _FLAG_AT if letter in "aA" and i in (3, 4) else _NUMBER_AT
        match = pattern.match(text, at)
        if match is None:
            return None
        found.append(float(match.group()))
        separator = _SEPARATOR.match(text, match.end())
        assert separator is not None
        at = separator.end()
    return tuple(found), at


def parse_numbers(text: str) -> list[float] | None:
    """The numbers of a list that is separated by blanks and commas, None if it is not one."""
    numbers: list[float] = []
    at = _skip_space(text, 0)
    while at < len(text):
        match = _NUMBER_AT.match(text, at)
        if match is None:
            return None
        numbers.append(float(match.group()))
        separator = _SEPARATOR.match(text, match.end())
        assert separator is not None
        at = separator.end()
        if at == len(text) and "," in separator.group():
            return None
    return numbers


def parse_length(text: str) -> float | None:
    """The number of a length with or without a unit, None if it is not one."""
    # A longer text is no length, and would make the pattern slow.
    return _length(text) if len(text) <= 64 else None


@lru_cache(maxsize=4096)  # the drawings of a corpus have few lengths, and ask for each many times
def _length(text: str) -> float | None:
    match = _LENGTH.fullmatch(text.strip())
    return float(match.group(1)) if match else None


def parse_transform(text: str) -> list[float] | None:
    """All numbers of a list of transforms, None if it is not one."""
    numbers: list[float] = []
    at = 0
    text = text.strip()
    while at < len(text):
        match = _TRANSFORM.match(text, at)
        if match is None:
            return None
        arguments = parse_numbers(match.group(2))
        if arguments is None or len(arguments) not in _N_TRANSFORM[match.group(1)]:
            return None
        numbers += arguments
        at = match.end()
    return numbers
