"""A folder of real SVG files to rows: each parsed safely, on one line, in ASCII."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lockstep.artifacts import atomic_write_text, read_bytes
from lockstep.data.ascii_map import ascii_markup
from lockstep.data.svg import MAX_BYTES, Element, parse_svg
from lockstep.data.svg_rules import TEXTS
from lockstep.errors import InputError, LockstepError

_SPACE = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class AssetRow:
    """One file as a row."""

    path: Path
    row: str


@dataclass(frozen=True, slots=True)
class Refused:
    """One file that gave no row, and why."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class Assets:
    """Every file of a glob, as a row, as a copy of an earlier one, or refused with a reason."""

    rows: tuple[AssetRow, ...]
    copies: tuple[Path, ...]
    refused: tuple[Refused, ...]

    def save(self, path: Path) -> Path:
        """Writes the rows, one to a line.

        Raises: EnvironmentLacks if the disk refuses.
        """
        return atomic_write_text(path, "".join(asset.row + "\n" for asset in self.rows))


def one_line(root: Element, *, map_common: bool = True) -> str:
    """A parsed SVG as one line of ASCII markup that parses to the same elements."""
    return "".join(_markup(root, map_common))


def _markup(element: Element, common: bool) -> Iterator[str]:
    yield f"<{element.tag}"
    for name, value in element.attributes.items():
        # In attributes only references are safe: an id or a path must not change.
        text = ascii_markup(_SPACE.sub(" ", value).strip(), common=False)
        yield f' {name}="{text}"'
    inside = "".join(_inside(element, common))
    yield f">{inside}</{element.tag}>" if inside else "/>"


def _inside(element: Element, common: bool) -> Iterator[str]:
    n_children = len(element.children)
    for i, child in enumerate(element.children):
        if isinstance(child, Element):
            yield from _markup(child, common)
            continue
        text = _SPACE.sub(" ", child)
        # Blanks at the very ends are layout; between words and <tspan> they are text.
        text = text.lstrip() if i == 0 else text
        text = text.rstrip() if i == n_children - 1 else text
        yield ascii_markup(text, common=common and element.tag != "style")


def read_asset(path: Path, *, map_common: bool = True) -> str:
    """One SVG file as a row.

    Raises: InputError if it cannot be read, does not parse, or holds what is not allowed.
    """
    root = parse_svg(_bytes(path), where=str(path), foreign=True)
    row = one_line(root, map_common=map_common)
    again = parse_svg(row, where=f"{path} on one line")
    if _shape(again) != _shape(root):
        raise InputError(
            f"{path}: expected the same elements on one line, got others",
            hint="leave the file out, and report it",
        )
    return row


def _bytes(path: Path) -> bytes:
    """The bytes of a file of bearable size; a device or a pipe might never end."""
    if not path.is_file():
        raise InputError(f"{path}: expected a file, got something else", hint="leave it out")
    if (size := path.stat().st_size) > MAX_BYTES:
        raise InputError(
            f"{path}: expected at most {MAX_BYTES} bytes, got {size}", hint="leave it out"
        )
    return read_bytes(path)


def _shape(root: Element) -> list[tuple[str, tuple[str, ...], bool]]:
    """Elements, their attributes' names, and whether they hold text."""
    return [(e.tag, tuple(e.attributes), e.tag in TEXTS) for e in root.walk()]


def read_assets(pattern: str, *, map_common: bool = True) -> Assets:
    """Every file that a glob finds, sorted by path; nothing is dropped in silence.

    Raises: InputError if the glob finds no file, or not one of them gives a row.
    """
    paths = sorted(Path(name) for name in glob.glob(pattern, recursive=True))
    paths = [path for path in paths if not path.is_dir()]
    if not paths:
        raise InputError(
            f"assets {pattern}: expected files, got none", hint="quote the glob, and check it"
        )
    rows: dict[str, Path] = {}
    copies: list[Path] = []
    refused: list[Refused] = []
    for path in paths:
        try:
            row = read_asset(path, map_common=map_common)
        except LockstepError as error:
            refused.append(Refused(path, error.message))
            continue
        if rows.setdefault(row, path) is not path:
            copies.append(path)
    if not rows:
        raise InputError(
            f"assets {pattern}: expected SVG, got {len(refused)} files that are refused, "
            f"the first because: {refused[0].reason}",
            hint="check that the glob finds SVG files",
        )
    found = tuple(AssetRow(path, row) for row, path in rows.items())
    return Assets(found, tuple(copies), tuple(refused))
