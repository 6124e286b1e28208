"""One page per run, complete in itself: no network, no third-party script."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from lockstep import __version__
from lockstep.artifacts import RunDir, atomic_write_text
from lockstep.report.data import Page, page_of

SECTIONS = (
    ("verdicts", "Verdicts"),
    ("curves", "Curves"),
    ("speed", "Speed"),
    ("graph", "Graph"),
    ("tokens", "Tokens"),
    ("gallery", "Gallery"),
    ("evidence", "Evidence"),
)
SCRIPTS = ("chart.js", "graph.js", "page.js")
_SIGNS = {"<=": "≤", ">=": "≥", "==": "="}


def write_report(run_dir: RunDir | Path) -> Path:
    """Writes the page of a run into its directory, from the files that are there.

    Raises: InputError if there is no run directory; EnvironmentLacks if the disk refuses.
    """
    run = run_dir if isinstance(run_dir, RunDir) else RunDir(Path(run_dir))
    return atomic_write_text(run.report, render(page_of(run)))


def render(page: Page) -> str:
    """The page as HTML."""
    style, script = _asset("page.css"), "\n".join(_asset(name) for name in SCRIPTS)
    text: str = (
        _environment()
        .from_string(_asset("template.html"))
        .render(
            page=page,
            sections=SECTIONS,
            version=__version__,
            style=Markup(style),
            style_hash=_csp_hash(style),
            script=Markup(script),
            script_hash=_csp_hash(script),
            data=_embedded(page.script_data),
        )
    )
    return text


@cache
def _asset(name: str) -> str:
    return files("lockstep.report").joinpath(name).read_text("utf-8")


def _csp_hash(text: str) -> str:
    """What the page's own policy knows its one script and its one style by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _embedded(value: Any) -> Markup:
    """JSON that cannot end the element that it stands in."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


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
    """A path that may be broken after its slashes and underscores."""
    text = str(escape(path))
    for sign in "/_":
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
