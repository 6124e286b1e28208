"""Where each node of a graph is drawn: one column per section, one band per layer."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TypeVar

from lockstep.artifacts.graph_file import GraphFile, GraphNode

WIDTH, HEIGHT = 128, 34
GAP_X, GAP_Y = 12, 20
PAD, TITLE = 14, 22
BAND_GAP, COLUMN_GAP = 18, 56
PER_ROW = 5
K = TypeVar("K")
_LAYER = re.compile(r"\blayers?\.(\d+)\b")
_BEFORE, _AFTER = -1, 1_000_000


@dataclass(frozen=True, slots=True)
class Box:
    """A node or a frame.  Units: pixels, from the top left corner."""

    id: str
    x: float
    y: float
    w: float
    h: float


@dataclass(frozen=True, slots=True)
class Edge:
    """A line from a node to one that reads from it; `far` says that it leaves its section."""

    source: str
    target: str
    path: str
    far: bool


@dataclass(frozen=True, slots=True)
class Layout:
    """The drawing: frames behind, then edges, then nodes."""

    width: float
    height: float
    columns: tuple[Box, ...]
    frames: tuple[Box, ...]
    nodes: tuple[Box, ...]
    edges: tuple[Edge, ...]


def lay_out(graph: GraphFile) -> Layout:
    """Places every node; forward runs down, backward runs up beside it."""
    groups = _groups(graph)
    sections = list(dict.fromkeys(node.section for node in graph.nodes))
    bands = sorted({band for _, band in groups})
    rows = {key: _rows(nodes, upward=key[0] == "backward") for key, nodes in groups.items()}
    widths = {s: max(_width(r) for (t, _), r in rows.items() if t == s) for s in sections}
    heights = {b: max(_height(r) for (_, c), r in rows.items() if c == b) for b in bands}

    left, top = _offsets(widths, COLUMN_GAP, 0), _offsets(heights, BAND_GAP, TITLE + 6)
    nodes: dict[str, Box] = {}
    frames = []
    for (section, band), lines in rows.items():
        x, y = left[section], top[band]
        frames.append(Box(_band_name(band), x, y, widths[section], heights[band]))
        nodes |= _place(lines, x, y, widths[section], heights[band])
    columns = tuple(Box(s, left[s], 0, widths[s], TITLE) for s in sections)
    return Layout(
        width=sum(widths.values()) + COLUMN_GAP * (len(sections) - 1),
        height=max((f.y + f.h for f in frames), default=0),
        columns=columns,
        frames=tuple(frames),
        nodes=tuple(nodes.values()),
        edges=_edges(graph, nodes),
    )


def _groups(graph: GraphFile) -> dict[tuple[str, int], list[GraphNode]]:
    """The nodes of each section and layer; those outside of a layer lie before or after all."""
    known: dict[str, int] = {}
    groups: dict[tuple[str, int], list[GraphNode]] = defaultdict(list)
    seen: set[str] = set()
    for node in graph.nodes:
        found = _LAYER.search(node.id)
        if found:
            band = int(found[1])
            seen.add(node.section)
        else:
            stem = node.id.split(".")[0].split(":")[0]
            later = (node.section in seen) != (node.section == "backward")
            band = known.setdefault(stem, _AFTER if later else _BEFORE)
        groups[node.section, band].append(node)
    return dict(groups)


def _rows(nodes: list[GraphNode], *, upward: bool) -> list[list[GraphNode]]:
    """The nodes in rows, each as late as its first reader allows, wide rows wrapped."""
    ranks = _ranks(nodes)
    readers: dict[str, list[int]] = defaultdict(list)
    for node in reversed(nodes):
        below = [rank for value in node.outputs for rank in readers[value.id]]
        ranks[node.id] = min(below, default=ranks[node.id] + 1) - 1
        for id in node.inputs:
            readers[id].append(ranks[node.id])
    ranked: dict[int, list[GraphNode]] = defaultdict(list)
    for node in nodes:
        ranked[ranks[node.id]].append(node)
    rows = []
    for _, line in sorted(ranked.items()):
        rows += [line[i : i + PER_ROW] for i in range(0, len(line), PER_ROW)]
    return rows[::-1] if upward else rows


def _ranks(nodes: list[GraphNode]) -> dict[str, int]:
    """For each node the length of its longest way from the start."""
    makers = {value.id: node.id for node in nodes for value in node.outputs}
    ranks: dict[str, int] = {}
    for node in nodes:
        before = [ranks[makers[i]] for i in node.inputs if i in makers and makers[i] in ranks]
        ranks[node.id] = 1 + max(before, default=-1)
    return ranks


def _width(rows: list[list[GraphNode]]) -> float:
    return 2 * PAD + max(len(row) * (WIDTH + GAP_X) - GAP_X for row in rows)


def _height(rows: list[list[GraphNode]]) -> float:
    return PAD + TITLE + len(rows) * (HEIGHT + GAP_Y) - GAP_Y


def _offsets(sizes: dict[K, float], gap: float, start: float) -> dict[K, float]:
    offsets: dict[K, float] = {}
    for key, size in sizes.items():
        offsets[key] = start
        start += size + gap
    return offsets


def _place(
    rows: list[list[GraphNode]], x: float, y: float, width: float, height: float
) -> dict[str, Box]:
    """Centres the rows in a frame."""
    boxes = {}
    line_y = y + TITLE + (height - _height(rows)) / 2
    for row in rows:
        line_x = x + (width - (len(row) * (WIDTH + GAP_X) - GAP_X)) / 2
        for i, node in enumerate(row):
            boxes[node.id] = Box(node.id, line_x + i * (WIDTH + GAP_X), line_y, WIDTH, HEIGHT)
        line_y += HEIGHT + GAP_Y
    return boxes


def _edges(graph: GraphFile, boxes: dict[str, Box]) -> tuple[Edge, ...]:
    makers = {value.id: node for node in graph.nodes for value in node.outputs}
    edges = []
    for node in graph.nodes:
        sources = {makers[i].id: makers[i] for i in node.inputs if i in makers}
        for id, source in sources.items():
            far = source.section != node.section
            path = _across(boxes[id], boxes[node.id]) if far else _along(boxes[id], boxes[node.id])
            edges.append(Edge(id, node.id, path, far))
    return tuple(edges)


def _along(a: Box, b: Box) -> str:
    """A curve between boxes of one column, out of the side that faces the other."""
    down = b.y >= a.y
    ax, ay = a.x + a.w / 2, a.y + (a.h if down else 0)
    bx, by = b.x + b.w / 2, b.y + (0 if down else b.h)
    bend = max(12.0, abs(by - ay) * 0.45) * (1 if down else -1)
    return f"M{ax:g} {ay:g}C{ax:g} {ay + bend:g} {bx:g} {by - bend:g} {bx:g} {by:g}"


def _across(a: Box, b: Box) -> str:
    """A curve between columns."""
    right = b.x >= a.x
    ax, ay = a.x + (a.w if right else 0), a.y + a.h / 2
    bx, by = b.x + (0 if right else b.w), b.y + b.h / 2
    bend = max(30.0, abs(bx - ax) * 0.4) * (1 if right else -1)
    return f"M{ax:g} {ay:g}C{ax + bend:g} {ay:g} {bx - bend:g} {by:g} {bx:g} {by:g}"


def _band_name(band: int) -> str:
    return {_BEFORE: "before the layers", _AFTER: "after the layers"}.get(band, f"layer {band}")
