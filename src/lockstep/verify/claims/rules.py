"""The claim file: what somebody says of a conversion, independent of the code that made it.

These dataclasses are the Python spelling; `claim_file.load_claims` reads the TOML spelling of the
same, and `to_toml` writes it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from lockstep.artifacts.verification import Mapped
from lockstep.verify.claim import Equality

SCHEMA = "lockstep.claims/1"
Side = Literal["source", "target"]
FACT_PLACES = ("source", "target", "count", "source_type", "target_type", "default")
ExcuseKind = Literal["drop", "new", "duplicate", "derived"]
_BITS = Equality()


@dataclass(frozen=True, kw_only=True)
class Fact:
    """A number or word that steps use by name, and the places that must agree on it.

    `value` is a constant, `expression` is over other facts; `source` and `target` are keys of the
    checkpoints' facts, with dots for tables in tables; `count` is a pattern with one capture, of
    which the source's names have so many; `source_type` and `target_type` are names of leaves, of
    which the type is the fact. `default` is an expression, used where no place has it.
    """

    value: int | float | str | tuple[int | float | str, ...] | None = None
    expression: str = ""
    source: str = ""
    target: str = ""
    count: str = ""
    source_type: str = ""
    target_type: str = ""
    default: str = ""


@dataclass(frozen=True, kw_only=True)
class From:
    """One source of a claim, as a pattern, with steps of its own."""

    name: str
    transform: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ClaimRule:
    """A rule of `[[claim]]`: target leaves by pattern, and what they are made of.

    An `optional` rule may match nothing, for the `reason`.
    """

    target: str
    sources: tuple[From, ...]
    transform: tuple[str, ...] = ()
    group: str = "params"
    where: str = ""
    captures: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    equality: Equality = _BITS
    optional: bool = False
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class ExcuseRule:
    """A rule of `[[drop]]`, `[[new]]`, `[[duplicate]]` or `[[derived]]`, with its reason.

    A new leaf with a `value` is proved to be that constant; `group` is its group then.
    """

    kind: ExcuseKind
    side: Side
    leaf: str
    reason: str
    value: int | float | str | None = None
    group: str = "params"
    where: str = ""
    captures: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    optional: bool = False


@dataclass(frozen=True, kw_only=True)
class TieRule:
    """A rule of `[[tie]]`: leaves of one side, by name, with equal bits where they exist."""

    side: Side
    leaves: tuple[str, ...]
    optional: bool = False
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class LikeRule:
    """A rule of `[[like]]`: the leaves of `group` follow those of the group `of`.

    `source` and `target` say how names follow on each side: the beginning of the parameter's name,
    what stands in its place, and, if there are three, what is added at the end. `cast` is one step
    that changes values.
    """

    group: str
    of: str
    source: tuple[str, ...]
    target: tuple[str, ...]
    cast: str = ""
    optional: bool = False
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class ClaimFile:
    """All that is claimed.  `where` names the file in messages and is no part of the content."""

    claims: tuple[ClaimRule, ...] = ()
    excuses: tuple[ExcuseRule, ...] = ()
    ties: tuple[TieRule, ...] = ()
    likes: tuple[LikeRule, ...] = ()
    facts: Mapping[str, Fact] = field(default_factory=dict)
    mapping: Mapped = "independent"
    title: str = ""
    where: str = field(default="claims", compare=False)

    @property
    def digest(self) -> str:
        """The sha256 of the canonical content: JSON with sorted keys, every default written out."""
        content = {"schema": SCHEMA, **_plain(self)}
        del content["where"]
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def place(self, kind: str, i: int) -> str:
        """Where a rule stands, for messages: the file, the kind, the number from 1, the target."""
        target = f" (target {self.claims[i - 1].target:.200})" if kind == "claim" else ""
        return f"{self.where}: [[{kind}]] {i}{target}"

    def to_toml(self) -> str:
        """The TOML spelling, without what is as by default."""
        lines = [f"schema = {_toml(SCHEMA)}"]
        lines += [f"{key} = {_toml(value)}" for key, value in self._heading().items()]
        if self.facts:
            lines += ["", "[facts]"]
            lines += [f"{_key(name)} = {_toml(_fact(fact))}" for name, fact in self.facts.items()]
        for kind, table in self._tables():
            lines += ["", f"[[{kind}]]"]
            lines += [f"{key} = {_toml(value)}" for key, value in table.items()]
        return "\n".join(lines) + "\n"

    def _heading(self) -> dict[str, Any]:
        return {"title": self.title, "mapping": self.mapping} if self.title else {
            "mapping": self.mapping
        }  # fmt: skip

    def _tables(self) -> list[tuple[str, dict[str, Any]]]:
        found: list[tuple[str, dict[str, Any]]] = []
        for rule in self.claims:
            found.append(("claim", _claim(rule)))
        for excuse in self.excuses:
            table = _set(
                {"group": excuse.group if excuse.value is not None else "params"}, "params"
            )
            table |= {excuse.side: excuse.leaf, "reason": excuse.reason}
            if excuse.value is not None:
                table["value"] = excuse.value
            found.append((excuse.kind, table | _selection(excuse)))
        for tie in self.ties:
            table = {"side": tie.side, "leaves": list(tie.leaves)}
            found.append(("tie", table | _set({"optional": tie.optional, "reason": tie.reason})))
        for like in self.likes:
            table = {"group": like.group, "of": like.of}
            table |= {"source": list(like.source), "target": list(like.target)}
            rest = {"cast": like.cast, "optional": like.optional, "reason": like.reason}
            found.append(("like", table | _set(rest)))
        return found


def _plain(value: Any) -> Any:
    if isinstance(value, ClaimFile | Fact | From | ClaimRule | ExcuseRule | TieRule | LikeRule):
        return {key: _plain(getattr(value, key)) for key in value.__dataclass_fields__}
    if isinstance(value, Equality):
        return asdict(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


# --- writing TOML


def _claim(rule: ClaimRule) -> dict[str, Any]:
    table: dict[str, Any] = {"group": rule.group, "target": rule.target}
    if len(rule.sources) == 1 and not rule.sources[0].transform:
        table["source"] = rule.sources[0].name
    else:
        table["sources"] = [
            {"name": s.name, "transform": list(s.transform)} if s.transform else s.name
            for s in rule.sources
        ]
    table |= _set({"transform": list(rule.transform)})
    equality = rule.equality
    if equality.kind == "within":
        kept = {k: v for k, v in asdict(equality).items() if k != "kind" and v is not None}
        table["equality"] = kept
    elif equality.kind != "bits":
        table["equality"] = equality.kind
    table |= _selection(rule)
    return table | _set({"reason": rule.reason})


def _selection(rule: ClaimRule | ExcuseRule) -> dict[str, Any]:
    words = {name: list(words) for name, words in rule.captures.items()}
    return _set({"where": rule.where, "captures": words, "optional": rule.optional})


def _set(table: dict[str, Any], *defaults: Any) -> dict[str, Any]:
    """The entries that say something."""
    return {key: value for key, value in table.items() if value and value not in defaults}


def _fact(fact: Fact) -> Any:
    if fact.value is not None and fact == Fact(value=fact.value):
        return fact.value
    table = {key: getattr(fact, key) for key in FACT_PLACES}
    stated: Any = fact.expression or fact.value
    if isinstance(fact.value, str):
        stated = repr(fact.value)  # in a table a word is an expression
    return ({"value": stated} if stated is not None and stated != "" else {}) | _set(table)


def _key(name: str) -> str:
    return name if name.replace("_", "").isalnum() and name.isascii() else _toml(name)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        inner = ", ".join(f"{_key(key)} = {_toml(item)}" for key, item in value.items())
        return f"{{ {inner} }}"
    return "[" + ", ".join(map(_toml, value)) + "]"
