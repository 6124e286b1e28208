"""Where each node of a graph is drawn: one column per section, one band per layer."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

from lockstep.artifacts.graph_file import GraphFile, GraphNode

WIDTH, HEIGHT = 128, 46
GAP_X, GAP_Y = 12, 20
PAD, TITLE = 14, 22
BAND_GAP, COLUMN_GAP = 18, 56
COLUMNS = ("forward", "backward", "update", "pack", "init")  # others follow
PER_ROW = {"update": 3, "pack": 3}  # as many as 5 elsewhere
MANY_READERS = 6
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
    """A line from a node to one that reads from it.

    `far` says that it leaves its section, or starts where very many start.
    """

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
    present = {section for section, _ in groups}
    others = sorted(present.difference(COLUMNS))
    sections = [section for section in (*COLUMNS, *others) if section in present]
    bands = sorted({band for _, band in groups})
    rows = {key: _rows(nodes, key[0]) for key, nodes in groups.items()}
    widths = {s: max(_width(r) for (t, _), r in rows.items() if t == s) for s in sections}
    heights = {b: max(_height(r) for (_, c), r in rows.items() if c == b) for b in bands}

    left, top = _offsets(widths, COLUMN_GAP, 0), _offsets(heights, BAND_GAP, TITLE + 6)
    nodes: dict[str, Box] = {}
    frames = []
    for (section, band), lines in rows.items():
        frame = Box(_band_name(band), left[section], top[band], widths[section], heights[band])
        frames.append(frame)
        spare = frame.h - _height(lines) if section in COLUMNS[:2] else 0.0
        nodes |= _place(lines, frame, frame.y + TITLE + spare / 2)
    columns = tuple(Box(s, left[s], 0, widths[s], TITLE) for s in sections)
    return Layout(
        width=sum(widths.values()) + COLUMN_GAP * max(0, len(sections) - 1),
        height=max((f.y + f.h for f in frames), default=0),
        columns=columns,
        frames=tuple(frames),
        nodes=tuple(nodes[node.id] for node in graph.nodes),
        edges=_edges(graph, nodes),
    )


def _groups(graph: GraphFile) -> dict[tuple[str, int], list[GraphNode]]:
    """The nodes of each section and layer; those outside of a layer lie before or after all."""
    bands: dict[str, int] = {}
    seen: set[str] = set()
    # What the forward section says about `embed` or `head` holds for the other sections too.
    for node in sorted(graph.nodes, key=lambda node: node.section != "forward"):
        found = _LAYER.search(node.id)
        later = (node.section in seen) != (node.section == "backward")
        stem = re.split(r"[.:@]", node.id)[0]
        if found:
            seen.add(node.section)
        else:
            bands.setdefault(stem, _AFTER if later else _BEFORE)
    groups: dict[tuple[str, int], list[GraphNode]] = defaultdict(list)
    for node in graph.nodes:
        found = _LAYER.search(node.id)
        band = int(found[1]) if found else bands[re.split(r"[.:@]", node.id)[0]]
        groups[node.section, band].append(node)
    return dict(groups)


def _rows(nodes: list[GraphNode], section: str) -> list[list[GraphNode]]:
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
    rows, wide = [], PER_ROW.get(section, 5)
    for _, line in sorted(ranked.items()):
        rows += [line[i : i + wide] for i in range(0, len(line), wide)]
    return rows[::-1] if section == "backward" else rows


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


def _place(rows: list[list[GraphNode]], frame: Box, y: float) -> dict[str, Box]:
    """The rows one below the other from a height on, each in the middle of the frame."""
    boxes = {}
    for row in rows:
        x = frame.x + (frame.w - (len(row) * (WIDTH + GAP_X) - GAP_X)) / 2
        for i, node in enumerate(row):
            boxes[node.id] = Box(node.id, x + i * (WIDTH + GAP_X), y, WIDTH, HEIGHT)
        y += HEIGHT + GAP_Y
    return boxes


def _edges(graph: GraphFile, boxes: dict[str, Box]) -> tuple[Edge, ...]:
    makers = {value.id: node for node in graph.nodes for value in node.outputs}
    pairs = [
        (makers[i], node) for node in graph.nodes for i in dict.fromkeys(node.inputs) if i in makers
    ]
    n_readers = Counter(source.id for source, _ in pairs)
    edges = {}
    for source, node in pairs:
        a, b = boxes[source.id], boxes[node.id]
        leaves = source.section != node.section
        far = leaves or n_readers[source.id] > MANY_READERS
        path = _across(a, b) if leaves else _along(a, b, boxes.values())
        edges[source.id, node.id] = Edge(source.id, node.id, path, far)
    return tuple(edges.values())


def _along(a: Box, b: Box, boxes: Iterable[Box]) -> str:
    """A curve between boxes of one column, beside what stands in the way of a straight one."""
    down = b.y >= a.y
    low, high = min(a.y, b.y) + HEIGHT, max(a.y, b.y)
    middle = (a.x + b.x + WIDTH) / 2
    long = high - low > HEIGHT and abs(b.x - a.x) < WIDTH
    if long and any(low <= c.y < high and c.x <= middle <= c.x + c.w for c in boxes):
        ax, bx = a.x + a.w, b.x + b.w
        out = max(ax, bx) + min(60.0, 16 + (high - low) / 12)
        ay, by = a.y + a.h / 2, b.y + b.h / 2
        return f"M{ax:g} {ay:g}C{out:g} {ay:g} {out:g} {by:g} {bx:g} {by:g}"
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
