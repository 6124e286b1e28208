"""What an SVG may contain: elements, attributes, and a rule for the value of each."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from lockstep.data.colors import rgb_of
from lockstep.data.path_data import parse_length, parse_numbers, parse_path, parse_transform

_SHAPES = "circle ellipse line path polygon polyline rect"
_TEXTS = "desc style text title tspan"
_FILTERS = """filter feBlend feColorMatrix feComposite feDisplacementMap feDropShadow feFlood
feGaussianBlur feMerge feMergeNode feMorphology feOffset feTurbulence"""
_OTHERS = "clipPath defs g linearGradient marker mask pattern radialGradient stop svg symbol use"
SHAPES = frozenset(_SHAPES.split())
TEXTS = frozenset(_TEXTS.split())
ELEMENTS = SHAPES | TEXTS | frozenset(f"{_FILTERS} {_OTHERS}".split())

MAX_NUMBER = 1e6
MAX_CANVAS = 8192
_MAX_WORDS = 256  # characters of a paint or a reference; bounds the time of the patterns

_LENGTHS = """x1 x2 y1 y2 cx cy r fx fy stroke-width stroke-dashoffset stroke-miterlimit
letter-spacing word-spacing offset refX refY markerWidth markerHeight startOffset textLength"""
_LENGTH_LISTS = "x y dx dy rotate"
_SIZES = "width height r rx ry"
_TRANSFORMS = "transform gradientTransform patternTransform"
_PAINTS = "fill stroke color stop-color flood-color lighting-color"
_REFERENCES = "filter marker-start marker-mid marker-end clip-path mask"
# The words that these take are harmless, whatever they are; only dangerous text is refused.
_WORDS = """id class style role version type result in in2 operator mode xml:space xml:lang lang
font-family font-size font-style font-weight font-variant text-anchor text-decoration
dominant-baseline alignment-baseline baseline-shift fill-opacity stroke-opacity opacity
stop-opacity flood-opacity fill-rule clip-rule stroke-dasharray stroke-linecap stroke-linejoin
vector-effect paint-order shape-rendering text-rendering image-rendering visibility display overflow
gradientUnits patternUnits patternContentUnits markerUnits clipPathUnits maskUnits
maskContentUnits filterUnits primitiveUnits spreadMethod preserveAspectRatio orient
stdDeviation baseFrequency numOctaves seed scale radius values k1 k2 k3 k4 xChannelSelector
yChannelSelector stitchTiles color-interpolation-filters pointer-events cursor focusable
writing-mode unicode-bidi direction lengthAdjust method spacing mix-blend-mode isolation"""
_URL = re.compile(r"url\(\s*['\"]?#([A-Za-z_][\w.:-]*)['\"]?\s*\)")
_DANGER = re.compile(
    r"\\|@import|expression\(|javascript:|(?:https?|file|ftp|data):|image(?:-set)?\(|src\(|//",
    re.IGNORECASE,
)
_FUNCTION = re.compile(
    r"(?:rgba?|hsla?)\([\d\s.,%/+-]+(?:deg)?[\d\s.,%/+-]*\)|#(?:[\da-fA-F]{4}){1,2}"
)
_FILTER_FUNCTIONS = re.compile(r"(?:[a-z-]+\((?:[\w\s.,%#-]|\([\w\s.,%#-]*\))*\)\s*)+")
_NAMESPACES = {
    "xmlns": "http://www.w3.org/2000/svg",
    "xmlns:xlink": "http://www.w3.org/1999/xlink",
    "xmlns:svg": "http://www.w3.org/2000/svg",
}
_PAINT_WORDS = ("none", "currentColor", "inherit", "transparent", "context-fill", "context-stroke")

# From a value to what was expected, or to nothing if the value may stand.
Rule = Callable[[str], str]


def references(value: str) -> list[str]:
    """The ids that the `url(#id)` of a value point at."""
    return _URL.findall(value)


def danger(value: str) -> str:
    """What is dangerous in a value or a style sheet: anything that could reach outside."""
    inside = _URL.sub("", value)
    if "url(" in inside.lower():
        return "url() only as url(#id)"
    found = _DANGER.search(inside)
    return f"no {found.group()!r}" if found else ""


def _bounded(numbers: list[float] | None, expected: str) -> str:
    if numbers is None:
        return expected
    fine = all(math.isfinite(n) and abs(n) <= MAX_NUMBER for n in numbers)
    return "" if fine else f"numbers up to {MAX_NUMBER:g}"


def _length(value: str) -> str:
    if value.strip() == "auto":
        return ""
    number = parse_length(value)
    return _bounded(None if number is None else [number], "a length")


def _size(value: str) -> str:
    number = parse_length(value)
    return _length(value) or ("a length of at least 0" if number is not None and number < 0 else "")


def _length_list(value: str) -> str:
    words = value.replace(",", " ").split()
    return "a length" if not words else next(filter(None, map(_length, words)), "")


def _points(value: str) -> str:
    numbers = parse_numbers(value)
    odd = numbers is not None and len(numbers) % 2 == 1
    return "pairs of numbers" if odd else _bounded(numbers, "pairs of numbers")


def _path(value: str) -> str:
    commands = parse_path(value)
    if commands is None:
        return "path data that starts with a move"
    return _bounded([n for c in commands for n in c.arguments], "")


def _view_box(value: str) -> str:
    numbers = parse_numbers(value)
    if numbers is None or len(numbers) != 4 or min(numbers[2:]) <= 0:
        return "four numbers, width and height above 0"
    return _bounded(numbers, "")


def _paint(value: str) -> str:
    if len(value) > _MAX_WORDS:
        return f"at most {_MAX_WORDS} characters"
    rest = _URL.sub("", value, count=1).strip()
    if not rest:
        return "" if value.strip() else "a colour"
    known = rest in _PAINT_WORDS or rgb_of(rest) is not None
    return "" if known or _FUNCTION.fullmatch(rest) else "a colour, none or url(#id)"


def _reference(value: str) -> str:
    if len(value) > _MAX_WORDS:
        return f"at most {_MAX_WORDS} characters"
    fine = value.strip() in ("none", "inherit") or _URL.fullmatch(value.strip())
    # A filter may also be a list of plain functions such as blur(2px).
    fine = fine or _FILTER_FUNCTIONS.fullmatch(value.strip())
    return "" if fine else "url(#id) or none"


def _href(value: str) -> str:
    return "" if re.fullmatch(r"#[A-Za-z_][\w.:-]*", value) else "a reference inside the file, #id"


def _transform(value: str) -> str:
    return _bounded(parse_transform(value), "a list of transforms")


RULES: dict[str, Rule] = {
    **dict.fromkeys(_WORDS.split(), lambda _: ""),
    **dict.fromkeys(_LENGTHS.split(), _length),
    **dict.fromkeys(_LENGTH_LISTS.split(), _length_list),
    **dict.fromkeys(_SIZES.split(), lambda v: "" if v == "auto" else _size(v)),
    **dict.fromkeys(_PAINTS.split(), _paint),
    **dict.fromkeys(_REFERENCES.split(), _reference),
    **dict.fromkeys(_TRANSFORMS.split(), _transform),
    "href": _href,
    "xlink:href": _href,
    "d": _path,
    "points": _points,
    "viewBox": _view_box,
}


def check_attribute(tag: str, name: str, value: str) -> str:
    """What was expected of an attribute; nothing if it may stand."""
    if name in _NAMESPACES:
        return "" if value == _NAMESPACES[name] else repr(_NAMESPACES[name])
    if name.startswith("aria-") or (name.startswith("data-") and name != "data-src"):
        return danger(value)
    rule = RULES.get(name)
    if rule is None:
        return "no such attribute"
    problem = danger(value) or rule(value)
    if not problem and tag == "svg" and name in ("width", "height"):
        length = parse_length(value)
        if length is not None and length > MAX_CANVAS:
            return f"at most {MAX_CANVAS}"
    return problem
