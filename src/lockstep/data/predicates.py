"""For each tag, a predicate that decides from the drawing itself whether the tag is true of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from lockstep.data.colors import FAMILIES, hsl_of
from lockstep.data.grammar import BAR_COUNTS, CONTROL_TAGS
from lockstep.data.path_data import parse_path
from lockstep.data.scene import Box, Scene, Shape, scene_of
from lockstep.data.svg import Element
from lockstep.data.svg_rules import references

Predicate = Callable[[Scene], bool]

# Units: 64ths of the canvas.
_NEAR = 2.0
_CENTERED = 4.0
_FULL = 0.8


def _unit(scene: Scene) -> float:
    return min(scene.canvas.width, scene.canvas.height) / 64


def _inside(scene: Scene) -> bool:
    """Every mark has a box, and it lies on the canvas."""
    c, boxes = scene.canvas, scene.boxes
    return len(boxes) == len(scene.marks) > 0 and all(
        c.left <= b.left and c.top <= b.top and b.right <= c.right and b.bottom <= c.bottom
        for b in boxes
    )


def _union(boxes: Sequence[Box]) -> Box:
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return Box(min(lefts), min(tops), max(rights), max(bottoms))


# Subjects.


def _is_circle(shape: Shape) -> bool:
    return shape.tag == "circle" and shape.number("r") > 0


def _is_ellipse(shape: Shape) -> bool:
    rx, ry = shape.number("rx"), shape.number("ry")
    return shape.tag == "ellipse" and min(rx, ry) > 0 and abs(rx - ry) >= 1


def _is_rect(shape: Shape) -> bool:
    return shape.tag == "rect" and min(shape.number("width"), shape.number("height")) > 0


def _is_triangle(shape: Shape) -> bool:
    return shape.tag == "polygon" and len(set(shape.corners)) == 3 and shape.area >= 1


def _is_polygon(shape: Shape) -> bool:
    return shape.tag == "polygon" and len(set(shape.corners)) >= 4 and shape.area >= 1


def _is_line(shape: Shape) -> bool:
    return shape.tag == "line" and len(set(_ends(shape))) == 2 and shape.stroke != "none"


def _ends(line: Shape) -> tuple[tuple[float, float], tuple[float, float]]:
    n = line.number
    return (n("x1"), n("y1")), (n("x2"), n("y2"))


def _only(kind: Callable[[Shape], bool]) -> Predicate:
    """Marks of this kind, and nothing else."""
    return lambda scene: (
        len(scene.marks) == len(scene.shapes) > 0 and all(kind(mark) for mark in scene.marks)
    )


# Bar charts.


def _bars(scene: Scene) -> list[Box]:
    """The bars from left to right; none unless they stand side by side on one base line."""
    boxes = sorted(scene.boxes, key=lambda box: box.left)
    if not _inside(scene) or not all(map(_is_rect, scene.marks)) or len(boxes) < 2:
        return []
    near = _unit(scene) / 2
    first = boxes[0]
    alike = all(
        abs(b.width - first.width) <= near and abs(b.bottom - first.bottom) <= near for b in boxes
    )
    apart = all(a.right <= b.left for a, b in pairwise(boxes))
    return boxes if alike and apart else []


def _rising(values: Sequence[float]) -> bool:
    return len(values) >= 2 and all(a < b for a, b in pairwise(values))


def _axes(scene: Scene) -> bool:
    """One unfilled stroke goes down the left of the bars and along the base line under them."""
    bars = _bars(scene)
    paths = [shape for shape in scene.shapes if shape.tag == "path"]
    if not bars or len(paths) != 1 or paths[0].fill != "none" or paths[0].stroke == "none":
        return False
    commands = parse_path(paths[0].attributes.get("d", "")) or []
    if [command.letter for command in commands] != ["M", "V", "H"]:
        return False
    (left, top), (base,), (right,) = (command.arguments for command in commands)
    all_bars, near = _union(bars), _NEAR * _unit(scene)
    tall_enough = top <= all_bars.top
    return (
        left <= all_bars.left and tall_enough and right >= all_bars.right
        and abs(base - all_bars.bottom) <= near
    )  # fmt: skip


# Palettes.


def _colors(scene: Scene) -> list[str]:
    """Every colour that paints something."""
    found: list[str] = []
    for shape in scene.shapes:
        for paint in (shape.fill, shape.stroke):
            names = references(paint)
            found += [color for name in names for color in scene.gradients[name]]
            found += [paint] if not names and paint != "none" else []
    return found


def _palette(family: str) -> Predicate:
    belongs = FAMILIES[family]

    def decide(scene: Scene) -> bool:
        colors = [hsl_of(color) for color in _colors(scene)]
        return bool(colors) and all(color is not None and belongs(color) for color in colors)

    return decide


# Styles.


def _is_solid(paint: str) -> bool:
    return paint != "none" and not references(paint)


def _filled(mark: Shape, _: Scene) -> bool:
    return mark.tag != "line" and _is_solid(mark.fill) and mark.stroke == "none"


def _hollow(mark: Shape) -> bool:
    return (mark.tag == "line" or mark.fill == "none") and _is_solid(mark.stroke)


def _outlined(mark: Shape, scene: Scene) -> bool:
    return _hollow(mark) and mark.stroke_width >= 2 * _unit(scene)


def _minimal(mark: Shape, scene: Scene) -> bool:
    return _hollow(mark) and 0 < mark.stroke_width <= _unit(scene)


def _graded(mark: Shape, scene: Scene) -> bool:
    stops = [color for name in references(mark.fill) for color in scene.gradients[name]]
    return mark.tag != "line" and len({hsl_of(color) for color in stops}) >= 2


def _each(style: Callable[[Shape, Scene], bool]) -> Predicate:
    return lambda scene: bool(scene.marks) and all(style(mark, scene) for mark in scene.marks)


# Layouts.


def _center(scene: Scene) -> bool:
    if not _inside(scene) or len(scene.boxes) != 1:
        return False
    box, canvas, near = scene.boxes[0], scene.canvas, _CENTERED * _unit(scene)
    return (
        abs(box.center_x - canvas.center_x) <= near
        and abs(box.center_y - canvas.center_y) <= near
        and max(box.width / canvas.width, box.height / canvas.height) < _FULL
    )


def _fill(scene: Scene) -> bool:
    if not _inside(scene) or len(scene.boxes) != 1:
        return False
    box, canvas = scene.boxes[0], scene.canvas
    return min(box.width / canvas.width, box.height / canvas.height) >= _FULL


def _top_left(scene: Scene) -> bool:
    if not _inside(scene):
        return False
    box, canvas = _union(scene.boxes), scene.canvas
    return box.right <= canvas.center_x and box.bottom <= canvas.center_y


def _levels(values: Sequence[float], near: float) -> list[int]:
    """For each value, which cluster of near values it is in, counted from the smallest."""
    order = sorted(range(len(values)), key=values.__getitem__)
    levels, level = [0] * len(values), 0
    for before, after in pairwise(order):
        level += values[after] - values[before] > near
        levels[after] = level
    return levels


def _apart(a: Box, b: Box) -> bool:
    return a.right <= b.left or b.right <= a.left or a.bottom <= b.top or b.bottom <= a.top


def _grid(scene: Scene) -> bool:
    boxes = scene.boxes
    if not _inside(scene) or len(boxes) < 4:
        return False
    near = _NEAR * _unit(scene)
    columns = _levels([box.center_x for box in boxes], near)
    rows = _levels([box.center_y for box in boxes], near)
    cells = set(zip(columns, rows, strict=True))
    full = len(cells) == len(boxes) == (max(columns) + 1) * (max(rows) + 1)
    pairs = ((a, b) for i, a in enumerate(boxes) for b in boxes[:i])
    return full and min(max(columns), max(rows)) >= 1 and all(_apart(a, b) for a, b in pairs)


def _stacked(scene: Scene) -> bool:
    boxes = sorted(scene.boxes, key=lambda box: box.top)
    if not _inside(scene) or len(boxes) < 2:
        return False
    near = _NEAR * _unit(scene)
    return all(
        a.bottom <= b.top and abs(a.center_x - b.center_x) <= near for a, b in pairwise(boxes)
    )


def _has_bars(n_bars: int) -> Predicate:
    return lambda scene: len(_bars(scene)) == n_bars


PREDICATES: dict[str, Predicate] = {
    "[circle]": _only(_is_circle),
    "[rect]": _only(_is_rect),
    "[ellipse]": _only(_is_ellipse),
    "[triangle]": _only(_is_triangle),
    "[polygon]": _only(_is_polygon),
    "[line]": _only(_is_line),
    "[bar-chart]": lambda scene: bool(_bars(scene)),
    **{f"[bars:{n}]": _has_bars(n) for n in BAR_COUNTS},
    "[ascending]": lambda scene: _rising([bar.height for bar in _bars(scene)]),
    "[descending]": lambda scene: _rising([-bar.height for bar in _bars(scene)]),
    "[axes]": _axes,
    **{f"[palette:{family}]": _palette(family) for family in FAMILIES},
    "[style:filled]": _each(_filled),
    "[style:outlined]": _each(_outlined),
    "[style:gradient]": _each(_graded),
    "[style:minimal]": _each(_minimal),
    "[layout:center]": _center,
    "[layout:top-left]": _top_left,
    "[layout:fill]": _fill,
    "[layout:grid]": _grid,
    "[layout:stacked]": _stacked,
}
assert PREDICATES.keys() == set(CONTROL_TAGS)


def decide(root: Element, tags: Sequence[str]) -> dict[str, bool]:
    """For each tag, whether it is true of a parsed SVG."""
    scene = scene_of(root)
    return {tag: scene is not None and PREDICATES[tag](scene) for tag in tags}
