"""What an SVG draws: flat shapes with their paints and boxes, as far as predicates can decide."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from lockstep.data.path_data import parse_length, parse_numbers
from lockstep.data.svg import Element
from lockstep.data.svg_rules import SHAPES, references

_INHERITED = ("fill", "stroke", "stroke-width")
# With one of these, boxes and colours are no longer what the plain attributes say.
_WORDS = """transform style class opacity fill-opacity stroke-opacity stop-opacity filter mask
clip-path display visibility stroke-dasharray gradientTransform href xlink:href"""
_UNDECIDABLE = frozenset(_WORDS.split())


class Box(NamedTuple):
    """A box by its edges."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def center_x(self) -> float:
        return (self.left + self.right) / 2

    @property
    def center_y(self) -> float:
        return (self.top + self.bottom) / 2

    @property
    def width(self) -> float:
        return self.right - self.left

    @property
    def height(self) -> float:
        return self.bottom - self.top


@dataclass(frozen=True, slots=True)
class Shape:
    """One drawn element, with the paints that it inherits."""

    tag: str
    attributes: Mapping[str, str]

    def number(self, name: str, default: float = 0.0) -> float:
        """The value of a length attribute."""
        value = parse_length(self.attributes.get(name, ""))
        return default if value is None else value

    @property
    def fill(self) -> str:
        return self.attributes.get("fill", "black")

    @property
    def stroke(self) -> str:
        return self.attributes.get("stroke", "none")

    @property
    def stroke_width(self) -> float:
        return self.number("stroke-width", 1.0)

    @property
    def corners(self) -> list[tuple[float, float]]:
        """The points of a polygon or a polyline."""
        numbers = parse_numbers(self.attributes.get("points", "")) or []
        return list(zip(numbers[0::2], numbers[1::2], strict=True))

    @property
    def area(self) -> float:
        """The area inside the corners of a polygon."""
        points = self.corners
        turned = zip(points, points[1:] + points[:1], strict=True)
        return abs(sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in turned)) / 2

    @property
    def box(self) -> Box | None:
        """Where the geometry lies, strokes left aside; None for a path."""
        n = self.number
        if self.tag == "circle":
            r = n("r")
            return Box(n("cx") - r, n("cy") - r, n("cx") + r, n("cy") + r)
        if self.tag == "ellipse":
            rx, ry = n("rx"), n("ry")
            return Box(n("cx") - rx, n("cy") - ry, n("cx") + rx, n("cy") + ry)
        if self.tag == "rect":
            return Box(n("x"), n("y"), n("x") + n("width"), n("y") + n("height"))
        points = self.corners
        if self.tag == "line":
            points = [(n("x1"), n("y1")), (n("x2"), n("y2"))]
        if not points:
            return None
        xs, ys = zip(*points, strict=True)
        return Box(min(xs), min(ys), max(xs), max(ys))


@dataclass(frozen=True, slots=True)
class Scene:
    """The canvas, the shapes in the order of drawing, and the colours of each gradient."""

    canvas: Box
    shapes: tuple[Shape, ...]
    gradients: Mapping[str, tuple[str, ...]]

    @property
    def marks(self) -> list[Shape]:
        """The shapes that carry the subject; in this contract a path is only ever an axis."""
        return [shape for shape in self.shapes if shape.tag != "path"]

    @property
    def boxes(self) -> list[Box]:
        """The boxes of the marks that have one."""
        return [box for shape in self.marks if (box := shape.box) is not None]


def scene_of(root: Element) -> Scene | None:
    """The scene of a parsed SVG, None where plain attributes do not decide what is seen."""
    numbers = parse_numbers(root.attributes.get("viewBox", ""))
    if not numbers:
        return None
    left, top, width, height = numbers
    shapes: list[Shape] = []
    gradients: dict[str, tuple[str, ...]] = {}
    if not _collect(root, {}, shapes, gradients):
        return None
    used = {name for s in shapes for paint in (s.fill, s.stroke) for name in references(paint)}
    if not used <= gradients.keys():
        return None
    return Scene(Box(left, top, left + width, top + height), tuple(shapes), gradients)


def _collect(
    element: Element, paints: dict[str, str], shapes: list[Shape],
    gradients: dict[str, tuple[str, ...]],
) -> bool:  # fmt: skip
    """Gathers the shapes below an element; False if something there cannot be decided."""
    if not _UNDECIDABLE.isdisjoint(element.attributes):
        return False
    own = {name: element.attributes[name] for name in _INHERITED if name in element.attributes}
    paints = {**paints, **own}
    if element.tag == "linearGradient":
        stops = list(element.elements())
        gradients[element.attributes.get("id", "")] = tuple(
            stop.attributes.get("stop-color", "black") for stop in stops
        )
        return all(_UNDECIDABLE.isdisjoint(stop.attributes) for stop in stops)
    if element.tag in SHAPES:
        shapes.append(Shape(element.tag, {**element.attributes, **paints}))
        return True
    if element.tag in ("title", "desc"):
        return True
    if element.tag not in ("svg", "g", "defs"):
        return False
    # What stands in <defs> is not drawn; gradients there still count.
    drawn = shapes if element.tag != "defs" else []
    return all(_collect(child, paints, drawn, gradients) for child in element.elements())
