"""Which values are alive when, and which may take over another's bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lockstep.ir import Graph, Node, Schedule, Spot


@dataclass(slots=True)
class Lifetime:
    """Values that share bytes, and the stages from the first write to the last read."""

    values: list[str]
    n_bytes: int
    first: int
    last: int


def lifetimes(
    graph: Graph, schedule: Schedule, placed: Mapping[str, Spot]
) -> tuple[list[Lifetime], dict[str, str]]:
    """The lifetimes of the values that have no place yet, and those that lie where a state lies.

    A stage is the unit of time: within it, the tiles of its nodes run in any order.
    """
    reader = _Reader(graph, schedule)
    follow = _accumulators(graph, placed, reader)
    lives: dict[str, Lifetime] = {}
    forever = 1 + max(schedule.timeline.values(), default=0)
    for node in graph.nodes:
        for value in node.outputs:
            if value.id in placed or value.id in follow:
                continue
            first = schedule.timeline[node.id]
            n_bytes = value.type.n_bytes(graph.symbols)
            if node.section in ("init", "pack"):  # runs once, is read by every call
                lives[value.id] = Lifetime([value.id], n_bytes, 0, forever)
                continue
            life = Lifetime([value.id], n_bytes, first, reader.last_use(value.id, first))
            host = reader.takes_over(node, value.id, lives)
            if host is not None and host.n_bytes == n_bytes and host.last < forever:
                host.values.append(value.id)
                host.last = max(host.last, life.last)
                life = host
            lives[value.id] = life
    unique = {id(life): life for life in lives.values()}
    return list(unique.values()), follow


class _Reader:
    """Who reads each value, and where in the schedule."""

    def __init__(self, graph: Graph, schedule: Schedule) -> None:
        self.timeline = schedule.timeline
        self.uses: dict[str, list[tuple[Node, str]]] = {}
        for node in graph.nodes:
            for name, id in zip(node.op.inputs, node.inputs, strict=True):
                if id is not None:
                    self.uses.setdefault(id, []).append((node, name))
        self.places: dict[str, tuple[int, int]] = {}  # of nodes in chains: which chain, which place
        # `step` comes before `forward`, whose chains are parts of those of `step`.
        entries = reversed(list(schedule.entries.values()))
        stages = (stage for entry in entries for stage in entry)
        chains = [chain for stage in stages for chain in stage.chains]
        for number, chain in enumerate(chains):
            for place, node in enumerate(chain.nodes):
                self.places.setdefault(node.id, (number, place))

    def last_use(self, id: str, first: int) -> int:
        """The last stage that reads the value, or the one that makes it."""
        return max((self.timeline[node.id] for node, _ in self.uses.get(id, [])), default=first)

    def takes_over(self, node: Node, id: str, lives: dict[str, Lifetime]) -> Lifetime | None:
        """The lifetime of the input whose bytes the output `id` may take, row by row."""
        outputs = dict(zip(node.op.outputs, node.outputs, strict=True))
        for output_name, input_name in node.op.inplace.items():
            if outputs[output_name].id != id or input_name not in node.op.row_inputs:
                continue
            host = lives.get(node.inputs[node.op.inputs.index(input_name)] or "")
            if host is not None and node.id in self.places and self._is_last(node, host):
                return host
        return None

    def _is_last(self, node: Node, host: Lifetime) -> bool:
        """Whether all else that reads these bytes has read the rows of a tile before the node."""
        if sum(id in host.values for id in node.inputs) != 1:
            return False
        readers = (use for id in host.values for use in self.uses.get(id, []))
        return all(other is node or self._is_before(other, name, node) for other, name in readers)

    def _is_before(self, other: Node, name: str, node: Node) -> bool:
        if self.timeline[other.id] != self.timeline[node.id]:
            return self.timeline[other.id] < self.timeline[node.id]
        chain, place = self.places[node.id]
        other_chain, other_place = self.places.get(other.id, (-1, -1))
        return chain == other_chain and other_place < place and name in other.op.row_inputs


def _accumulators(graph: Graph, placed: Mapping[str, Spot], reader: _Reader) -> dict[str, str]:
    """Partial sums of a gradient that only the next partial sum reads: they lie in its state."""
    follow: dict[str, str] = {}
    for node in reversed(graph.nodes):
        for name, id in zip(node.op.inputs, node.inputs, strict=True):
            target = graph.writes.get(node.id) or follow.get(node.id)
            if (
                name.startswith("acc_")
                and target is not None
                and id is not None
                and id not in placed
                and len(reader.uses[id]) == 1
            ):
                follow[id] = target
    return follow
