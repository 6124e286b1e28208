"""The memory plan: a place for every value, smallest (`reuse`) or with no two sharing (`keep`)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from lockstep.errors import UsageError
from lockstep.ir import (
    ARENAS,
    Graph,
    GuardSpot,
    Mode,
    Plan,
    Role,
    Schedule,
    Spot,
    Value,
    flat_layout,
    padded,
)
from lockstep.passes.lifetimes import Lifetime, lifetimes

GUARD_BYTES = 64
GUARD_PATTERN = 0xA5
_ROLES: dict[str, tuple[Role, ...]] = {
    "params": ("parameter",),
    "grads": ("gradient",),
    "m": ("moment",),
    "v": ("moment",),
    "cache": ("cache", "state"),
}


def plan_memory(graph: Graph, schedule: Schedule, *, mode: Mode, guards: bool = False) -> Plan:
    """Places every value; a value that is written to a state lies where the state lies.

    Raises: UsageError for guards in `reuse` mode, in which values take each other's places.
    """
    if guards and mode == "reuse":
        raise UsageError(
            "memory plan: expected guards only in mode keep, got mode reuse",
            hint="build with mode='keep'",
        )
    planner = _Planner(graph, guards)
    produced = {v.id: v for node in graph.nodes for v in node.outputs}
    for arena, roles in _ROLES.items():
        held = [v for role in roles for v in graph.with_role(role) if _is_in(arena, v)]
        planner.place_flat(arena, held)
    for value in graph.with_role("gradients"):
        if value.type.n_bytes({}) != planner.arenas["grads"]:
            raise UsageError(
                f"memory plan: expected {value.id} to be the whole arena of gradients, "
                f"{planner.arenas['grads']} bytes, got {value.type}",
                hint="give add_optimizer and plan_memory the same guards",
            )
        planner.spots[value.id] = Spot("grads", 0)
    edges = [produced[id] for id in dict.fromkeys(graph.outputs.values()) if id in produced]
    planner.place_flat("io", [*graph.with_role("input"), *edges])
    for id, state in graph.writes.items():
        planner.spots[id] = planner.spots[state]
    if mode == "keep":
        planner.place_flat("work", [v for v in produced.values() if v.id not in planner.spots])
    else:
        lives, follow = lifetimes(graph, schedule, planner.spots)
        planner.spots.update((id, planner.spots[state]) for id, state in follow.items())
        planner.place_shared(lives)
    return Plan(
        mode=mode,
        spots=planner.spots,
        arenas={name: planner.arenas.get(name, 0) for name in ARENAS},
        guards=tuple(planner.guards),
    )


def _is_in(arena: str, value: Value) -> bool:
    """Whether the arena of one of the two moments is the one of this value."""
    return arena not in ("m", "v") or value.id.endswith(f"@{arena}")


class _Planner:
    """Places values arena by arena."""

    def __init__(self, graph: Graph, guards: bool) -> None:
        self.graph = graph
        self.gap_bytes = GUARD_BYTES if guards else 0
        self.spots: dict[str, Spot] = {}
        self.arenas: dict[str, int] = {}
        self.guards: list[GuardSpot] = []

    def place_flat(self, arena: str, values: Iterable[Value]) -> None:
        """Places values one after another, with guards between them if the plan has guards."""
        values = list(values)
        layout = flat_layout(values, self.graph.symbols, self.gap_bytes)
        self.arenas[arena] = layout.n_bytes
        self.spots.update((id, Spot(arena, offset)) for id, offset in layout.offsets.items())
        if not self.gap_bytes:
            return
        # The norm runs over the whole arena of gradients: there, guards hold zeros.
        pattern = 0 if arena == "grads" else GUARD_PATTERN
        ends = [0, *(layout.offsets[v.id] + v.type.n_bytes(self.graph.symbols) for v in values)]
        starts = [*layout.offsets.values(), layout.n_bytes]
        names = ["", *(v.id for v in values)]
        for name, end, start in zip(names, ends, starts, strict=True):
            self.guards.append(GuardSpot(arena, end, start - end, pattern, name))

    def place_shared(self, lives: list[Lifetime]) -> None:
        """Places values so that those that are alive at the same stage do not overlap.

        The largest comes first, each in the smallest hole that it fits.
        """
        first, last, begin, end = np.zeros((4, len(lives)), np.int64)  # of those that have a place
        for n, life in enumerate(sorted(lives, key=lambda life: (-life.n_bytes, life.first))):
            size = padded(life.n_bytes)
            meets = np.flatnonzero((first[:n] <= life.last) & (last[:n] >= life.first))
            taken = sorted(zip(begin[meets].tolist(), end[meets].tolist(), strict=True))
            offset = _smallest_hole(taken, size)
            first[n], last[n], begin[n], end[n] = life.first, life.last, offset, offset + size
            for id in life.values:
                self.spots[id] = Spot("work", offset)
        self.arenas["work"] = int(end.max(initial=0))


def _smallest_hole(taken: list[tuple[int, int]], size: int) -> int:
    """The start of the smallest free range that holds `size` bytes, else the end of all."""
    best: tuple[int, int] | None = None
    end = 0
    for start, stop in taken:
        if start - end >= size and (best is None or start - end < best[0]):
            best = (start - end, end)
        end = max(end, stop)
    return end if best is None else best[1]
