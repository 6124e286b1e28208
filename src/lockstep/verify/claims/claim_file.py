"""Reads claim files, strictly: an unknown key, a missing one or a wrong type is named."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, get_args

from lockstep.artifacts.verification import Mapped
from lockstep.errors import InputError, UsageError, nearest
from lockstep.formats.locate.bounded import opened
from lockstep.verify.claim import Equality
from lockstep.verify.claims.expand import compile_rules
from lockstep.verify.claims.rules import (
    FACT_PLACES,
    SCHEMA,
    ClaimFile,
    ClaimRule,
    ExcuseKind,
    ExcuseRule,
    Fact,
    From,
    LikeRule,
    Side,
    TieRule,
)

__all__ = ["ClaimFile", "ClaimRule", "ExcuseRule", "Fact", "From", "LikeRule", "TieRule"]
__all__ += ["load_claims", "parse_claims"]

READY = Path(__file__).parents[1] / "ready"

MAX_BYTES = 1 << 26  # of a claim file; one that names a million leaves stays below
MAX_STEPS = 1000  # of one transform
_MAPPINGS: tuple[Mapped, ...] = get_args(Mapped)
_KINDS = ("claim", "drop", "new", "duplicate", "derived", "tie", "like")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def load_claims(path_or_ready: str | Path) -> ClaimFile:
    """The claim file at a path, or, as `ready:NAME`, one that comes with the package.

    Raises: InputError if there is no such file; UsageError naming the rule and the key if it is
    not a claim file.
    """
    path = Path(path_or_ready)
    if isinstance(path_or_ready, str) and path_or_ready.startswith("ready:"):
        path = _ready(path_or_ready.removeprefix("ready:"))
    where = path.name
    try:
        with opened(path) as (file, _):  # a pipe or a device has no end
            data = file.read(MAX_BYTES + 1)
    except InputError as error:
        raise InputError(
            f"{path}: expected a claim file, got: {error.message.removeprefix(f'{path}: ')}",
            hint="check the path, or use ready:NAME",
        ) from error
    if len(data) > MAX_BYTES:
        raise UsageError(
            f"{where}: expected at most {MAX_BYTES} bytes, got more",
            hint="use patterns instead of a rule for each leaf",
        )
    try:
        document = tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{where}: expected TOML, got: {error}", hint="mend the line that it names"
        ) from error
    return parse_claims(document, where)


def parse_claims(document: Mapping[str, Any], where: str) -> ClaimFile:
    """The claim file that a parsed document spells.

    Raises: UsageError naming the rule and the key.
    """
    table = _Table(document, where)
    schema = table.text("schema")
    if schema != SCHEMA:
        table.wrong("schema", repr(SCHEMA), schema)
    facts = table.mapping("facts")
    rules = {kind: _rules(table, kind, where) for kind in _KINDS}
    mapping = table.choice("mapping", _MAPPINGS, "independent")
    title = table.text("title", "")
    table.done()
    found = ClaimFile(
        claims=tuple(map(_claim, rules["claim"])),
        excuses=tuple(
            _excuse(kind, rule)
            for kind in ("drop", "new", "duplicate", "derived")
            for rule in rules[kind]
        ),
        ties=tuple(map(_tie, rules["tie"])),
        likes=tuple(map(_like, rules["like"])),
        facts={name: _fact(name, fact, f"{where}: [facts]") for name, fact in facts.items()},
        mapping=mapping,
        title=title,
        where=where,
    )
    compile_rules(found)  # so that a wrong pattern, step or name is an error of the file
    return found


def _ready(name: str) -> Path:
    path = READY / f"{name}.toml"
    if not _is_plain(name) or not path.is_file():
        known = ", ".join(sorted(p.stem for p in READY.glob("*.toml"))) or "none"
        raise UsageError(
            f"ready:{name:.60}: expected the name of a ready claim file, got another",
            hint=f"use one of {known}, or a path",
        )
    return path


def _is_plain(name: str) -> bool:
    return re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", name) is not None and ".." not in name


class _Table:
    """A table of the file; each key is taken once, and `done` refuses what is left."""

    def __init__(self, table: Mapping[str, Any], where: str) -> None:
        self.left = dict(table)
        self._known: dict[str, None] = {}  # keys that were asked for
        self.where = where

    def wrong(self, key: str, expected: str, got: object) -> NoReturn:
        """Raises: UsageError, always."""
        raise UsageError(
            f"{self.where}: {key}: expected {expected}, got {got!r:.120}",
            hint=f"mend the key {key!r}",
        )

    def take(self, key: str, expected: str, default: Any, fits: Callable[[Any], bool]) -> Any:
        """The value of a key; without a default it must be there."""
        self._known[key] = None
        if key not in self.left:
            if default is not None:
                return default
            raise UsageError(
                f"{self.where}: expected the key {key!r}, got none", hint=f"add {key!r}"
            )
        value = self.left.pop(key)
        if not fits(value):
            self.wrong(key, expected, value)
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A string; one that must be there may not be empty."""
        value: str = self.take(
            key, "a word", default, lambda v: isinstance(v, str) and (v != "" or default == "")
        )
        return value

    def texts(self, key: str, *, needed: bool = False) -> tuple[str, ...]:
        """A list of strings."""
        return tuple(self.take(key, "a list of words", None if needed else (), _is_texts))

    def steps(self) -> tuple[str, ...]:
        """The steps of a transform."""
        found = self.texts("transform")
        if len(found) > MAX_STEPS:
            self.wrong("transform", f"at most {MAX_STEPS} steps", len(found))
        return found

    def flag(self, key: str) -> bool:
        """A truth value, false if it is not there."""
        value: bool = self.take(key, "true or false", False, lambda v: isinstance(v, bool))
        return value

    def mapping(self, key: str) -> Mapping[str, Any]:
        """A table, empty if it is not there."""
        value: Mapping[str, Any] = self.take(key, "a table", {}, lambda v: isinstance(v, dict))
        return value

    def choice(self, key: str, allowed: tuple[Any, ...], default: Any = None) -> Any:
        """One of some words."""
        return self.take(key, f"one of {', '.join(map(repr, allowed))}", default,
                         lambda v: isinstance(v, str) and v in allowed)  # fmt: skip

    def done(self) -> None:
        """Raises: UsageError if a key is left."""
        if self.left:
            key = min(self.left)
            raise UsageError(
                f"{self.where}: expected known keys, got {key!r:.80}",
                hint=f"{nearest(key, self._known)}remove {key!r:.80}, or mend its spelling; known "
                f"here: {', '.join(self._known)}",
            )


def _rules(table: _Table, kind: str, where: str) -> list[_Table]:
    rules = table.take(kind, f"tables [[{kind}]]", [], lambda v: isinstance(v, list))
    for i, rule in enumerate(rules, 1):
        if not isinstance(rule, dict):
            raise UsageError(
                f"{where}: [[{kind}]] {i}: expected a table, got {rule!r:.80}",
                hint=f"write [[{kind}]] with its keys below",
            )
    return [
        _Table(rule, f"{where}: [[{kind}]] {i}{_target_of(rule) if kind == 'claim' else ''}")
        for i, rule in enumerate(rules, 1)
    ]


def _target_of(rule: Mapping[str, Any]) -> str:
    """The target of a rule, by which a reader finds it."""
    target = rule.get("target")
    return f" (target {target:.200})" if isinstance(target, str) and target else ""


def _claim(table: _Table) -> ClaimRule:
    has_one, has_many = "source" in table.left, "sources" in table.left
    if has_one == has_many:
        raise UsageError(
            f"{table.where}: expected either 'source' or 'sources', got "
            f"{'both' if has_one else 'none'}",
            hint="use [[new]] for a leaf that comes from nowhere",
        )
    sources = (From(name=table.text("source")),) if has_one else _sources(table)
    optional, reason = _optional(table)
    rule = ClaimRule(
        target=table.text("target"),
        sources=sources,
        transform=table.steps(),
        group=table.text("group", "params"),
        where=table.text("where", ""),
        captures=_words(table),
        equality=_equality(table),
        optional=optional,
        reason=reason,
    )
    table.done()
    return rule


def _sources(table: _Table) -> tuple[From, ...]:
    given = table.take(
        "sources", "a list of sources", None, lambda v: isinstance(v, list) and v != []
    )
    found = []
    for i, source in enumerate(given, 1):
        if isinstance(source, str) and source:
            found.append(From(name=source))
            continue
        if not isinstance(source, dict):
            table.wrong("sources", "words, or tables with name and transform", source)
        inner = _Table(source, f"{table.where}: sources {i}")
        found.append(From(name=inner.text("name"), transform=inner.steps()))
        inner.done()
    return tuple(found)


def _optional(table: _Table) -> tuple[bool, str]:
    optional, reason = table.flag("optional"), table.text("reason", "")
    if optional and not reason:
        raise UsageError(
            f"{table.where}: expected a reason why the rule is optional, got none",
            hint="add reason = \"...\"",
        )  # fmt: skip
    return optional, reason


def _words(table: _Table) -> Mapping[str, tuple[str, ...]]:
    captures = table.mapping("captures")
    for name, words in captures.items():
        if not _is_texts(words) or not words or len(set(words)) != len(words):
            table.wrong(f"captures.{name}", "a list of different words", words)
    return {name: tuple(words) for name, words in captures.items()}


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) and v for v in value)


def _equality(table: _Table) -> Equality:
    given = table.take("equality", "'bits', 'values' or a table of limits", "bits",
                       lambda v: isinstance(v, dict) or v in ("bits", "values"))  # fmt: skip
    if isinstance(given, str):
        return Equality("values" if given == "values" else "bits")
    inner = _Table(given, f"{table.where}: equality")
    why = inner.text("why")
    ulp = inner.take("ulp", "an integer of 0 or more", (), lambda v: _is_int(v) and v >= 0)
    limits = {
        key: inner.take(key, "a number of 0 or more", (), lambda v: _is_number(v) and v >= 0)
        for key in ("atol", "rtol")
    }
    inner.done()
    if (ulp == ()) == (limits == {"atol": (), "rtol": ()}):
        raise UsageError(
            f"{inner.where}: expected either 'ulp', or 'atol' and 'rtol', got "
            f"{'none' if ulp == () else 'both'}",
            hint="say within which limit two values count as equal",
        )
    return Equality(
        "within",
        ulp=None if ulp == () else ulp,
        atol=None if limits["atol"] == () else float(limits["atol"]),
        rtol=None if limits["rtol"] == () else float(limits["rtol"]),
        why=why,
    )


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def _excuse(kind: ExcuseKind, table: _Table) -> ExcuseRule:
    sides: dict[str, tuple[Side, ...]] = {
        "drop": ("source",), "new": ("target",), "duplicate": ("source",),
        "derived": ("source", "target"),
    }  # fmt: skip
    given = [side for side in sides[kind] if side in table.left]
    if len(given) != 1:
        raise UsageError(
            f"{table.where}: expected the key {' or '.join(map(repr, sides[kind]))}, got "
            f"{'both' if given else 'none'}",
            hint="name the leaves that the rule is about",
        )
    value = None
    if kind == "new" and "value" in table.left:
        value = table.take("value", "a number, or bits as \"0x...\"", None,
                           lambda v: isinstance(v, int | float | str))  # fmt: skip
    rule = ExcuseRule(
        kind=kind,
        side=given[0],
        leaf=table.text(given[0]),
        reason=table.text("reason"),
        value=value,
        group=table.text("group", "params") if value is not None else "params",
        where=table.text("where", ""),
        captures=_words(table),
        optional=table.flag("optional"),
    )
    table.done()
    return rule


def _tie(table: _Table) -> TieRule:
    optional, reason = _optional(table)
    leaves = table.texts("leaves", needed=True)
    if len(set(leaves)) != len(leaves) or len(leaves) < 2:
        table.wrong("leaves", "two different leaves or more", list(leaves))
    side = table.choice("side", ("source", "target"))
    table.done()
    return TieRule(side=side, leaves=leaves, optional=optional, reason=reason)


def _like(table: _Table) -> LikeRule:
    optional, reason = _optional(table)
    names = {}
    for side in ("source", "target"):
        found = table.take(side, "[beginning, replacement] or [beginning, replacement, ending]",
                           None, lambda v: isinstance(v, list) and len(v) in (2, 3)
                           and all(isinstance(part, str) for part in v))  # fmt: skip
        names[side] = tuple(found)
    rule = LikeRule(
        group=table.text("group"),
        of=table.text("of"),
        source=names["source"],
        target=names["target"],
        cast=table.text("cast", ""),
        optional=optional,
        reason=reason,
    )
    table.done()
    return rule


def _fact(name: str, given: object, where: str) -> Fact:
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{where}: expected a name of letters, digits and _, got {name!r:.80}",
            hint="choose a name that can stand in an expression",
        )
    if not isinstance(given, dict):
        return Fact(value=_constant(given, f"{where}: {name}"))
    table = _Table(given, f"{where}: {name}")
    value = table.left.pop("value", None)
    keys = {key: table.text(key, "") for key in FACT_PLACES}
    table.done()
    if value is None and not any(keys.values()):
        raise UsageError(
            f"{where}: {name}: expected value, {', '.join(FACT_PLACES)}, got none",
            hint="say where the fact comes from",
        )
    if isinstance(value, str):
        return Fact(expression=value, **keys)
    return Fact(value=None if value is None else _constant(value, table.where), **keys)


def _constant(given: object, where: str) -> int | float | str | tuple[int | float | str, ...]:
    if isinstance(given, int | float | str):
        return given
    if isinstance(given, list) and all(isinstance(item, int | float | str) for item in given):
        return tuple(given)
    raise UsageError(
        f"{where}: expected a number, a word or a list of them, got {given!r:.80}",
        hint="state one value, or a table with value, source, target, count or default",
    )
