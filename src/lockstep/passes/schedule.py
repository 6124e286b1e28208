"""The schedule: few barriers, and tiles that depend on shapes alone, never on threads."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from lockstep.ir import (
    Chain,
    Dim,
    Graph,
    Kernel,
    Node,
    ParallelStage,
    Schedule,
    Section,
)

# Rows of one tile of a chain: the largest that still gives MIN_TILES tiles to share out, and no
# fewer than 16. More rows use a weight that was loaded more often and pay less for each call; fewer
# tiles leave threads idle at the end of a stage.
TILE_ROWS = (128, 64, 48, 32, 24, 16)
MIN_TILES = 4

# Sections that are scheduled together, in the order in which they run.
_GROUPS: tuple[tuple[Section, ...], ...] = (
    ("init",),
    ("pack",),
    ("forward", "backward"),
    ("update",),
)


def schedule(graph: Graph) -> Schedule:
    """The stages of every entry point of a lowered graph.

    A stage is one region between two barriers. Row-tiled nodes of one level form a chain, in which
    each tile of rows runs through all nodes; all other nodes of the level are cut into tiles.
    """
    facts = _Facts(graph)
    timeline: dict[str, int] = {}
    by_group: list[tuple[ParallelStage, ...]] = []
    for group in _GROUPS:
        stages = facts.stages(group)
        start = 1 + max(timeline.values(), default=-1)
        for number, stage in enumerate(stages, start):
            timeline.update((node.id, number) for node in stage.nodes)
        by_group.append(stages)
    init, packing, step, update = by_group
    entries = {"init": (*init, *packing), "forward": _only(step, "forward")}
    if packing:
        entries["repack"] = packing
    if any(node.section == "backward" for node in graph.nodes):
        entries["step"] = step
    if update:
        entries["update"] = (*update, *packing)
    return Schedule(entries=entries, kernels=facts.kernels, timeline=timeline)


class _Facts:
    """What the levels follow from: each node's kernel, its rows, and what it reads row by row."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.producers = graph.producers()
        self.kernels: dict[str, Kernel] = {}
        self.rows: dict[str, Dim] = {}  # of the nodes that are tiled by rows
        for node in graph.nodes:
            sizes = node_sizes(graph, node)
            kernel = node.op.kernel(sizes, node.attrs)
            self.kernels[node.id] = kernel
            if kernel.tiling == "rows":
                self.rows[node.id] = sizes["M"]

    def stages(self, sections: Collection[Section]) -> tuple[ParallelStage, ...]:
        """The stages of the nodes in these sections."""
        levels: dict[str, int] = {}
        stages: list[list[Node]] = []
        for node in self.graph.nodes:
            if node.section in sections:
                level = self._level(node, levels)
                levels[node.id] = level
                stages += [[] for _ in range(level + 1 - len(stages))]
                stages[level].append(node)
        return tuple(self._stage(nodes) for nodes in stages)

    def _level(self, node: Node, levels: Mapping[str, int]) -> int:
        level = 0
        for name, id in zip(node.op.inputs, node.inputs, strict=True):
            producer = self.producers.get(id or "")
            if producer is not None and producer.id in levels:
                behind = 0 if self._follows(node, name, producer, id or "") else 1
                level = max(level, levels[producer.id] + behind)
        return level

    def _follows(self, node: Node, name: str, producer: Node, id: str) -> bool:
        """Whether a tile of rows of the node needs that tile of the producer alone."""
        rows = self.rows.get(node.id)
        return (
            rows is not None
            and rows == self.rows.get(producer.id)
            and name in node.op.row_inputs
            and self.graph.value(id).type.dims[:1] == (rows,)
        )

    def _stage(self, nodes: list[Node]) -> ParallelStage:
        chains: dict[Dim, list[Node]] = {}
        for node in nodes:
            if node.id in self.rows:
                chains.setdefault(self.rows[node.id], []).append(node)
        symbols = self.graph.symbols
        made = (
            Chain(tuple(chain), rows, tile_rows(symbols[rows] if isinstance(rows, str) else rows))
            for rows, chain in chains.items()
        )
        return ParallelStage(tuple(made), tuple(n for n in nodes if n.id not in self.rows))


def node_sizes(graph: Graph, node: Node) -> dict[str, Dim]:
    """The value of each axis letter of a node."""
    types = tuple(graph.value(i).type if i else None for i in node.inputs)
    return node.op.sizes(types, tuple(v.type for v in node.outputs))


def tile_rows(n_rows: int) -> int:
    """The rows of one tile of a chain."""
    fitting = (rows for rows in TILE_ROWS if rows * MIN_TILES <= n_rows)
    return next(fitting, TILE_ROWS[-1])


def _only(stages: tuple[ParallelStage, ...], section: Section) -> tuple[ParallelStage, ...]:
    """The stages with the nodes of one section alone, without those that are then empty."""
    kept = []
    for stage in stages:
        chains = (
            Chain(tuple(n for n in c.nodes if n.section == section), c.rows, c.tile_rows)
            for c in stage.chains
        )
        tiles = tuple(n for n in stage.tiles if n.section == section)
        some = tuple(c for c in chains if c.nodes)
        if some or tiles:
            kept.append(ParallelStage(some, tiles))
    return tuple(kept)
