"""What every page needs: its template, its own files with their hashes, text that stays text."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

_SIGNS = {"<=": "≤", ">=": "≥", "==": "="}


def fill(
    template: str,
    *,
    styles: tuple[str, ...],
    scripts: tuple[str, ...],
    filters: Mapping[str, Callable[..., Any]] = MappingProxyType({}),
    **values: Any,
) -> str:
    """A page as HTML: the template with its values and filters of its own, complete in itself.

    Its policy allows the one style and the one script that it carries, and no network.
    """
    style, script = ("\n".join(map(_asset, names)) for names in (styles, scripts))
    environment = _environment().overlay()
    environment.filters = {**environment.filters, **filters}
    text: str = environment.from_string(_asset(template)).render(
        style=Markup(style),
        style_hash=_csp_hash(style),
        script=Markup(script),
        script_hash=_csp_hash(script),
        **values,
    )
    return text


def embedded(value: Any) -> Markup:
    """JSON that cannot end the element that it stands in."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


@cache
def _asset(name: str) -> str:
    return files("lockstep.report").joinpath(name).read_text("utf-8")


def _csp_hash(text: str) -> str:
    """What the page's own policy knows its one script and its one style by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


@cache
def _environment() -> Environment:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    filters: dict[str, Callable[..., Any]] = {
        "grouped": lambda number: f"{number:,}".replace(",", "\u202f"),
        "figure": _figure,
        "relation": _SIGNS.__getitem__,
        "tail": _tail,
        "breakable": _breakable,
    }
    environment.filters |= filters
    return environment


def _figure(value: float | None) -> str:
    """A number in at most four digits."""
    if value is None:
        return "–"
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    if 1e-3 <= abs(value) < 1e6:
        return f"{value:.4g}"
    digits, _, power = f"{value:.2e}".partition("e")
    return f"{float(digits):g}e{int(power)}"


def _breakable(path: str) -> Markup:
    """A path that may be broken after its slashes, underscores and dots."""
    text = str(escape(path))
    for sign in "/_.":
        text = text.replace(sign, f"{sign}<wbr>")
    return Markup(text)


def _tail(id: str, room: int = 17) -> str:
    """The end of a path id, which is what tells neighbours apart."""
    parts = id.replace(".weight", "").split(".")
    shown = parts[-1]
    for part in reversed(parts[:-1]):
        if part.isdigit() or len(part) + 1 + len(shown) > room:
            break
        shown = f"{part}.{shown}"
    return shown if len(shown) <= room else "…" + shown[1 - room :]
