"""Just enough understanding of C text to copy a piece of it under other names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from lockstep.errors import UsageError

_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.S)
_DIRECTIVE = re.compile(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", re.M)
_PART = re.compile(r'^#line 1 "([^"]+)"\n(.*?)(?=^#line \d+ ")', re.M | re.S)
_VECTORS = "ops/vec.h"
_ATTRIBUTE = re.compile(r"__attribute__\(\(.*?\)\)")


def masked(text: str) -> str:
    """The text with comments as blanks, every other character where it was."""
    return _COMMENT.sub(lambda m: re.sub(r"[^\n]", " ", m[0]), text)


def block_end(text: str, at: int) -> int:
    """The offset behind the brace that closes the first one from `at` on."""
    depth = 0
    for match in re.compile(r"[{}]").finditer(text, at):
        depth += 1 if match[0] == "{" else -1
        if depth == 0:
            return match.end()
    raise UsageError("C text: expected a closing brace, got none")


@dataclass(frozen=True, slots=True)
class Definition:
    """A name at file scope, and the text that defines it."""

    name: str
    begin: int
    end: int
    is_function: bool


@dataclass(frozen=True)
class Piece:
    """A source that was copied into an emitted program, behind the headers of ops that it uses."""

    parts: tuple[tuple[str, str], ...]  # files and their texts

    @classmethod
    def holding(cls, source: str, file: str) -> Piece:
        """The piece that came from this file; vec.h, which is nobody's own, stays out.

        Raises: UsageError if the program has none.
        """
        found = {m[1]: m[2] for m in _PART.finditer(source)}
        if file not in found:
            raise UsageError(f"program: expected a piece of {file}, got none")
        parts = [(file, found[file])]
        headers = [name for name in found if name.endswith(".h") and name != _VECTORS]
        for name in reversed(headers):  # a header stands behind those that it uses itself
            words = {word for _, text in parts for word in re.findall(r"\w+", masked(text))}
            defined = {d.name for d in cls(((name, found[name]),)).definitions}
            if not words.isdisjoint(defined):
                parts.insert(0, (name, found[name]))
        return cls(tuple(parts))

    @cached_property
    def text(self) -> str:
        """All parts as one text."""
        return "".join(text for _, text in self.parts)

    def place(self, offset: int) -> str:
        """The file and the line of an offset in the text."""
        for file, text in self.parts:
            if offset < len(text):
                return f"{file}:{text.count(chr(10), 0, offset) + 1}"
            offset -= len(text)
        raise UsageError(f"piece: expected an offset inside of it, got {offset} too many")

    @cached_property
    def definitions(self) -> tuple[Definition, ...]:
        """Functions, macros, constants and types, in order."""
        code = masked(self.text)
        found = [
            Definition(m[1], directive.start(), directive.end(), False)
            for directive in _DIRECTIVE.finditer(code)
            if (m := re.match(r"[ \t]*#[ \t]*define[ \t]+(\w+)", directive[0]))
        ]
        blank = _DIRECTIVE.sub(lambda m: re.sub(r"[^\n]", " ", m[0]), code)
        at = 0
        while (brace := re.compile(r"\{").search(blank, at)) is not None:
            end = block_end(blank, brace.start())
            found += _defined(blank[at : brace.start()], blank[brace.start() : end], at, end)
            at = end
            if (name := re.match(r"\s*(\w+)\s*;", blank[at:])) is not None:
                found.append(Definition(name[1], brace.start(), end, False))  # of a typedef
        return tuple(found)

    def reachable(self, function: str) -> list[tuple[int, int]]:
        """Where the bodies are of all functions that a call of this one can run."""
        by_name: dict[str, list[Definition]] = {}
        for definition in self.definitions:
            by_name.setdefault(definition.name, []).append(definition)
        seen, waiting = set(), [function]
        while waiting:
            name = waiting.pop()
            if name in seen:
                continue
            seen.add(name)
            for known in by_name.get(name, ()):
                words = re.findall(r"\w+", masked(self.text[known.begin : known.end]))
                waiting += [word for word in words if word in by_name]
        chosen = (d for d in self.definitions if d.is_function and d.name in seen)
        return [(self.text.index("{", d.begin), d.end) for d in chosen]

    def renamed(self, text: str, suffix: str) -> str:
        """A version of the piece's text whose names at file scope all carry a suffix."""
        names = sorted({d.name for d in self.definitions}, key=len, reverse=True)
        return re.sub(rf"\b({'|'.join(names)})\b", rf"\1{suffix}", text)


def _defined(head: str, block: str, begin: int, end: int) -> list[Definition]:
    """What a top-level block defines: a function, the constants of an enum, or an array."""
    plain = _ATTRIBUTE.sub(lambda m: " " * len(m[0]), head)
    last = plain.rpartition(";")[2]
    at = begin + len(plain) - len(last)
    if re.search(r"\benum\b", last):
        names = re.findall(r"(\w+)\s*(?:=[^,}]*)?[,}]", block)
        return [Definition(name, at, end, False) for name in names]
    if "=" in last:
        named = re.search(r"(\w+)\s*(?:\[[^\]]*\])*\s*=", last)
        return [Definition(named[1], at, end, False)] if named else []
    named = re.search(r"(\w+)\s*\(", last)
    return [Definition(named[1], at, end, True)] if named else []
