"""A small SVG reader for text that nobody vouches for: caps first, then an allow-list."""

from __future__ import annotations

import xml.parsers.expat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NoReturn

from lockstep.data.svg_rules import ELEMENTS, TEXTS, check_attribute, danger, references
from lockstep.errors import InputError

MAX_BYTES = 4 << 20
MAX_DEPTH = 64
MAX_ELEMENTS = 50_000
MAX_COPIES = 100_000

_HINT = "remove what is not allowed, or leave this file out"


@dataclass(slots=True)
class Element:
    """One element with its attributes in the order of the text; a child that is text is a str."""

    tag: str
    attributes: Mapping[str, str]
    children: list[Element | str] = field(default_factory=list)

    def elements(self) -> Iterator[Element]:
        """The children that are elements."""
        return (child for child in self.children if isinstance(child, Element))

    def walk(self) -> Iterator[Element]:
        """This element and everything below it, in the order of the text."""
        yield self
        for child in self.elements():
            yield from child.walk()


def parse_svg(source: str | bytes, *, where: str = "svg", foreign: bool = False) -> Element:
    """The root of a well-formed SVG that holds only what the allow-list names.

    With `foreign`, elements and attributes of an editor's namespace are left out, not refused.

    Raises: InputError naming line and column.
    """
    data = source.encode("utf-8", "surrogatepass") if isinstance(source, str) else source
    if len(data) > MAX_BYTES:
        raise InputError(
            f"{where}: expected at most {MAX_BYTES} bytes, got {len(data)}", hint="leave it out"
        )
    root = _Reader(where, foreign).read(data)
    _check_references(root, where)
    return root


class _Reader:
    """The handlers of one parse."""

    def __init__(self, where: str, foreign: bool) -> None:
        self.where = where
        self.foreign = foreign
        self.stack: list[Element] = []
        self.root: Element | None = None
        self.n_elements = 0
        self.skipping = 0
        self.expat = xml.parsers.expat.ParserCreate("utf-8")
        self.expat.buffer_text = True
        self.expat.StartDoctypeDeclHandler = lambda *_: self.refuse("expected no DOCTYPE, got one")
        self.expat.StartElementHandler = self.start
        self.expat.EndElementHandler = self.end
        self.expat.CharacterDataHandler = self.text

    def refuse(self, problem: str) -> NoReturn:
        line, column = self.expat.CurrentLineNumber, self.expat.CurrentColumnNumber + 1
        raise InputError(f"{self.where}:{line}:{column}: {problem}", hint=_HINT)

    def read(self, data: bytes) -> Element:
        try:
            self.expat.Parse(data, True)
        except xml.parsers.expat.ExpatError as error:
            reason = xml.parsers.expat.errors.messages[error.code]
            raise InputError(
                f"{self.where}:{error.lineno}:{error.offset + 1}: expected well-formed XML, "
                f"got: {reason}",
                hint="mend the file with an XML editor, or leave it out",
            ) from error
        assert self.root is not None
        return self.root

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self.n_elements += 1
        if self.n_elements > MAX_ELEMENTS:
            self.refuse(f"expected at most {MAX_ELEMENTS} elements, got more")
        if len(self.stack) + self.skipping >= MAX_DEPTH:
            self.refuse(f"expected elements at most {MAX_DEPTH} deep, got deeper ones")
        if self.skipping or (self.foreign and self.stack and self._is_foreign(tag)):
            self.skipping += 1
            return
        if not self.stack and tag != "svg":
            self.refuse(f"expected the root <svg>, got <{tag:.40}>")
        if tag not in ELEMENTS:
            self.refuse(f"expected an allowed element, got <{tag:.40}>")
        if self.stack and self.stack[-1].tag == "style":
            self.refuse(f"<style>: expected text alone, got <{tag}>")
        element = Element(tag, self._checked(tag, attributes))
        if self.stack:
            self.stack[-1].children.append(element)
        else:
            self.root = element
        self.stack.append(element)

    def _is_foreign(self, name: str) -> bool:
        prefix, colon, _ = name.partition(":")
        return bool(colon) and prefix not in ("xml", "xlink", "xmlns", "svg")

    def _checked(self, tag: str, attributes: dict[str, str]) -> dict[str, str]:
        kept: dict[str, str] = {}
        for name, value in attributes.items():
            space = name.removeprefix("xmlns:") + ":" if name.startswith("xmlns:") else name
            if self.foreign and self._is_foreign(space):
                continue
            problem = check_attribute(tag, name, value)
            if problem:
                self.refuse(f"<{tag}> {name:.40}: expected {problem}, got {value[:60]!r}")
            kept[name] = value
        return kept

    def end(self, _tag: str) -> None:
        if self.skipping:
            self.skipping -= 1
            return
        element = self.stack.pop()
        if element.tag == "style":
            sheet = "".join(child for child in element.children if isinstance(child, str))
            if problem := danger(sheet):
                self.refuse(f"<style>: expected {problem}")

    def text(self, text: str) -> None:
        if self.skipping:
            return
        parent = self.stack[-1]
        if parent.tag in TEXTS:
            parent.children.append(text)
        elif text.strip():
            self.refuse(f"<{parent.tag}>: expected no text, got {text.strip()[:40]!r}")


def _check_references(root: Element, where: str) -> None:
    """Every reference has a target, and copies by <use> neither loop nor explode."""
    targets: dict[str, Element] = {}
    for element in root.walk():
        name = element.attributes.get("id")
        if name is not None and targets.setdefault(name, element) is not element:
            raise InputError(f"{where}: expected each id once, got {name!r:.60} twice", hint=_HINT)
    for element in root.walk():
        for key, value in element.attributes.items():
            names = [value[1:]] if key.endswith("href") else references(value)
            for name in names:
                if name not in targets:
                    raise InputError(
                        f"{where}: <{element.tag}> {key}: expected an element with the id "
                        f"{name!r:.60}, got none",
                        hint="define it, or drop the reference",
                    )
    _count_copies(root, targets, where, {}, set())


def _count_copies(
    element: Element, targets: Mapping[str, Element], where: str, known: dict[int, int],
    open_ids: set[int],
) -> int:  # fmt: skip
    """How many elements are drawn for this one when every <use> is followed."""
    key = id(element)
    if key in known:
        return known[key]
    if key in open_ids:
        raise InputError(f"{where}: <use>: expected no cycle, got one", hint="break the cycle")
    if len(open_ids) > 4 * MAX_DEPTH:
        raise InputError(f"{where}: <use>: expected short chains, got a long one", hint=_HINT)
    open_ids.add(key)
    total = 1
    for child in element.elements():
        total += _count_copies(child, targets, where, known, open_ids)
    if element.tag == "use":
        href = element.attributes.get("href") or element.attributes.get("xlink:href")
        if href is not None:
            total += _count_copies(targets[href[1:]], targets, where, known, open_ids)
    open_ids.discard(key)
    if total > MAX_COPIES:
        raise InputError(
            f"{where}: <use>: expected at most {MAX_COPIES} copies, got more", hint=_HINT
        )
    known[key] = total
    return total
