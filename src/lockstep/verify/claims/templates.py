"""Patterns over leaf names: `blk.{layer:int}.attn_q.weight`.

`{x:int}` captures digits without leading zeros, as an integer; `{x:str}` signs other than `/` and
`.`; `{x:any}` anything; `{x:enum}` one of a list. `{x}` is the same value again. Braces that hold
anything else are an expression (`{layer // 6}`), which can be written but not matched. `{{` and
`}}` are braces.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from lockstep.errors import UsageError
from lockstep.verify.claims.expressions import Expression, evaluate, parse_expression

Captured = int | str
_KINDS = {"int": "0|[1-9][0-9]{0,17}", "str": "[^/.]+", "any": ".+"}
# How long a name may be that is matched, by how many captures could each take another's signs:
# every one of them multiplies the ways that are tried by the length.
_LONGEST = {0: 1 << 24, 1: 1 << 20, 2: 4096, 3: 512}
_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]|[^{}]+")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Hole:
    """A capture of some kind, or, where `kind` is empty, the value of a capture again."""

    name: str
    kind: str


Part = str | Hole | Expression


@dataclass(frozen=True)
class Pattern:
    """A parsed pattern; `kinds` are the kinds of all captures of its rule, `words` the enums."""

    text: str
    parts: tuple[Part, ...]
    kinds: Mapping[str, str]
    words: Mapping[str, tuple[str, ...]]

    @cached_property
    def captures(self) -> tuple[str, ...]:
        """The names of its captures, in the order of the pattern."""
        return tuple(dict.fromkeys(part.name for part in self.parts if isinstance(part, Hole)))

    @cached_property
    def can_match(self) -> bool:
        """Whether names can be matched against it: it has no expressions."""
        return not any(isinstance(part, Expression) for part in self.parts)

    @cached_property
    def prefix(self) -> str:
        """The text before the first hole."""
        first = self.parts[0] if self.parts else ""
        return first if isinstance(first, str) else ""

    @cached_property
    def _longest(self) -> int:
        return _LONGEST[n_loose(self.parts, self.kinds, self.words)]

    @cached_property
    def _regex(self) -> re.Pattern[str]:
        seen: set[str] = set()
        text = ""
        for part in self.parts:
            if isinstance(part, str):
                text += re.escape(part)
                continue
            assert isinstance(part, Hole)
            if part.name in seen:
                text += f"(?P={part.name})"
                continue
            seen.add(part.name)
            kind = self.kinds[part.name]
            inner = "|".join(map(re.escape, self.words[part.name])) if kind == "enum" else (
                _KINDS[kind]
            )  # fmt: skip
            text += f"(?P<{part.name}>{inner})"
        return re.compile(text, re.DOTALL)

    def match(self, name: str) -> dict[str, Captured] | None:
        """The captures, or None if the name is another."""
        found = self._regex.fullmatch(name) if len(name) <= self._longest else None
        if found is None:
            return None
        return {
            key: int(text) if self.kinds[key] == "int" else text
            for key, text in found.groupdict().items()
        }

    def name_of(self, values: Mapping[str, object], where: str) -> str:
        """The name that the pattern spells with these values.

        Raises: UsageError if an expression in it cannot be computed.
        """
        text = ""
        for part in self.parts:
            if isinstance(part, str):
                text += part
            elif isinstance(part, Hole):
                text += str(values[part.name])
            else:
                text += str(evaluate(part.tree, values, where))
        return text

    def order(self, values: Mapping[str, Captured]) -> tuple[tuple[int, int, str], ...]:
        """What to sort matches by: numbers as numbers, words of a list as listed."""
        return tuple(self._rank(name, values[name]) for name in self.captures if name in values)

    def _rank(self, name: str, value: Captured) -> tuple[int, int, str]:
        if isinstance(value, int):
            return (0, value, "")
        if self.kinds[name] == "enum":
            return (0, self.words[name].index(value), "")
        return (1, 0, value)


def n_loose(
    parts: Iterable[Part], kinds: Mapping[str, str], words: Mapping[str, tuple[str, ...]]
) -> int:
    """How many captures of a pattern have no end of their own in the text that follows."""
    found = 0
    end = "/"  # what lies between a capture and the one before
    for part in parts:
        if isinstance(part, str):
            end += part
        elif isinstance(part, Hole):
            kind = kinds[part.name]
            has_end = {
                "any": False,
                "str": "." in end or "/" in end,
                "int": end != "",
                "enum": not _has_prefixes(words.get(part.name, ())),
            }
            found += not has_end[kind]
            end = ""
    return found


def _has_prefixes(words: Iterable[str]) -> bool:
    """Whether one of the words begins as another is."""
    return any(second.startswith(first) for first, second in pairwise(sorted(words)))


def parse_parts(text: str, where: str) -> tuple[Part, ...]:
    """The parts of a pattern.

    Raises: UsageError if its braces do not close, or hold neither a capture nor an expression.
    """
    parts: list[Part] = []
    literal = ""
    for token in _TOKEN.finditer(text):
        found = token.group()
        if found in ("{{", "}}"):
            literal += found[0]
        elif found in ("{", "}"):
            raise UsageError(
                f"{where}: expected braces that close, got {text!r:.120}",
                hint="write {{ for a brace that is part of the name",
            )
        elif found.startswith("{"):
            parts += [literal, _hole(token.group(1).strip(), text, where)]
            literal = ""
        else:
            literal += found
    parts.append(literal)
    return tuple(part for part in parts if part != "")


def _hole(inner: str, text: str, where: str) -> Part:
    name, colon, kind = (piece.strip() for piece in inner.partition(":"))
    if _NAME.fullmatch(name) and (not colon or kind in (*_KINDS, "enum")):
        return Hole(name, kind)
    if colon:
        raise UsageError(
            f"{where}: expected a capture such as {{layer:int}}, got {{{inner}}} in {text!r:.120}",
            hint=f"use one of the kinds {', '.join(_KINDS)}, enum",
        )
    return parse_expression(inner, where)


def patterns(
    texts: Iterable[str], words: Mapping[str, tuple[str, ...]], where: str
) -> tuple[Pattern, ...]:
    """The patterns of one rule, which share their captures.

    Raises: UsageError if a capture has no kind, two kinds, or an empty list of words.
    """
    texts = list(texts)
    split = [parse_parts(text, where) for text in texts]
    kinds: dict[str, str] = {}
    for text, parts in zip(texts, split, strict=True):
        for part in parts:
            if not isinstance(part, Hole) or not part.kind:
                continue
            if kinds.setdefault(part.name, part.kind) != part.kind:
                raise UsageError(
                    f"{where}: expected one kind of {{{part.name}}}, got "
                    f"{kinds[part.name]} and {part.kind} in {text!r:.120}",
                    hint="give the kind once in a rule",
                )
    _check_words(kinds, words, where)
    for text, parts in zip(texts, split, strict=True):
        for part in parts:
            if isinstance(part, Hole) and part.name not in kinds:
                raise UsageError(
                    f"{where}: expected a kind for the capture {{{part.name}}}, "
                    f"got none in {text!r:.120}",
                    hint=f"write {{{part.name}:int}}, or :str, :any, :enum",
                )
        if n_loose(parts, kinds, words) not in _LONGEST:
            raise UsageError(
                f"{where}: expected at most {max(_LONGEST)} captures with no end of their own, "
                f"got {text!r:.120}",
                hint="use {x:int} or {x:str} with a dot or a slash between, in place of {x:any}",
            )
    return tuple(
        Pattern(text, parts, kinds, words) for text, parts in zip(texts, split, strict=True)
    )


def _check_words(
    kinds: Mapping[str, str], words: Mapping[str, tuple[str, ...]], where: str
) -> None:
    for name, kind in kinds.items():
        if kind == "enum" and not words.get(name):
            raise UsageError(
                f"{where}: expected the words of {{{name}:enum}}, got none",
                hint=f'add captures = {{ {name} = ["...", "..."] }}',
            )
    for name in words:
        if kinds.get(name) != "enum":
            raise UsageError(
                f"{where}: captures: expected a capture {{{name}:enum}} in a pattern, got none",
                hint="write it into a pattern, or take it out of captures",
            )


class NameIndex:
    """The names of one checkpoint, in file order and sorted, so that a prefix finds its names."""

    def __init__(self, names: Iterable[str]) -> None:
        self.place = {name: i for i, name in enumerate(names)}
        self._sorted = sorted(self.place)

    def __contains__(self, name: str) -> bool:
        return name in self.place

    def matches(self, pattern: Pattern) -> list[tuple[str, dict[str, Captured]]]:
        """All names that match, with their captures, in file order."""
        if not pattern.captures:
            text = "".join(part for part in pattern.parts if isinstance(part, str))
            return [(text, {})] if text in self.place else []
        found = []
        for name in self._with_prefix(pattern.prefix):
            values = pattern.match(name)
            if values is not None:
                found.append((name, values))
        return sorted(found, key=lambda match: self.place[match[0]])

    def _with_prefix(self, prefix: str) -> Iterator[str]:
        for i in range(bisect_left(self._sorted, prefix), len(self._sorted)):
            if not self._sorted[i].startswith(prefix):
                return
            yield self._sorted[i]
