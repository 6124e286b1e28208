"""Compares a training program with the float64 referee, with itself, and names who is guilty.

Node by node: every node runs alone, on what this side really had (the local error), twice, because
only the second microbatch adds to gradients that are there. As a whole: the program's own entries,
stage by stage on several threads, must leave the same bits as its nodes did one at a time. In
float64: the whole graph, each side on its own inputs (the cumulative error).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from lockstep.build import Built
from lockstep.ir import Array, Section
from lockstep.native import Program
from lockstep.proof.referee import Refereed, unread_gradients
from lockstep.proof.subject import Subject
from lockstep.proof.walk import NodeCheck, check_nodes, relative_error

# One thread runs tasks in order, and with more threads each begins with its own share: a reader
# in the stage of its producer meets memory that nobody has written yet.
THREADS = (1, 2, 3, 5, 8)
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Parted:
    """A node whose value is not, to the bit, what the node alone made of the same inputs."""

    id: str
    entry: str
    threads: int
    error: float


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All that was seen: the checks in the order in which the nodes ran."""

    checks: tuple[NodeCheck, ...]
    guards: tuple[str, ...]
    parted: tuple[Parted, ...]
    n_entry_nodes: int
    n_entry_values: int
    cumulative: Mapping[str, float]
    states: Mapping[str, Array]  # every value of the program after the walk

    def worst(self) -> dict[str, NodeCheck]:
        """For each node the check that is worst for it."""
        found: dict[str, NodeCheck] = {}
        for check in self.checks:
            known = found.get(check.id)
            if known is None or not check.excess <= known.excess:
                found[check.id] = check
        return found

    @property
    def first_guilty(self) -> str | None:
        """The first node that is wrong by itself, else the first that the whole program spoils."""
        for check in self.checks:
            if not check.ok:
                return check.id
        return self.parted[0].id if self.parted else None


def compare(
    built: Built, subject: Subject, refereed: Refereed, *, progress: Progress = lambda text: None
) -> Findings:
    """Runs the program node by node and as a whole, and holds each against its judge."""
    runner = Runner(built, subject, refereed)
    progress("running every node alone")
    checks = tuple(runner.walk(progress))
    states = runner.snapshots[-1]
    guards = built.program.check_guards()
    progress(f"running the whole program on {', '.join(map(str, THREADS))} threads")
    held = [held for threads in THREADS for held in runner.entries(threads, progress)]
    return Findings(
        checks=checks,
        guards=tuple(dict.fromkeys([*guards, *(id for h in held for id in h.guards)])),
        parted=tuple(parted for h in held for parted in h.parted),
        n_entry_nodes=sum(h.n_nodes for h in held),
        n_entry_values=sum(h.n_values for h in held),
        cumulative=_cumulative(built, states, refereed),
        states=states,
    )


def first_guilty(
    built: Built, subject: Subject, refereed: Refereed, *, progress: Progress = lambda text: None
) -> tuple[str | None, Mapping[str, Array]]:
    """Like `compare`, but ends at the first node that is guilty; also what the nodes left."""
    runner = Runner(built, subject, refereed)
    for check in runner.walk(progress):
        if not check.ok:
            return check.id, {}
    for threads in THREADS:
        for held in runner.entries(threads, progress):
            if held.parted:
                return held.parted[0].id, {}
            if held.guards:
                return held.guards[0], {}
    return None, runner.snapshots[-1]


def _cumulative(built: Built, states: Mapping[str, Array], refereed: Refereed) -> dict[str, float]:
    with np.errstate(all="ignore"):
        return {
            node.id: max(relative_error(states[v.id], refereed.values[v.id]) for v in node.outputs)
            for node in built.graph.nodes
        }


@dataclass(frozen=True, slots=True)
class Held:
    """One call of an entry, held against what the nodes left one at a time."""

    n_nodes: int
    n_values: int
    parted: tuple[Parted, ...]
    guards: tuple[str, ...]


class Runner:
    """Brings programs to the points at which they are looked at.

    `snapshots` are all values after the first microbatch and at the end, once `walk` has ended.
    """

    def __init__(self, built: Built, subject: Subject, refereed: Refereed) -> None:
        self.built, self.subject, self.refereed = built, subject, refereed
        self.snapshots: tuple[dict[str, Array], ...] = ()

    def walk(self, progress: Progress) -> Iterator[NodeCheck]:
        """Every node alone."""
        program, built = self.built.program, self.built
        self.start(program)
        steps: tuple[Section, ...] = ("init", "pack", "forward", "backward")
        yield from check_nodes(built, steps, before=progress)
        first = self.snapshot(program)
        self.put_second(program)
        for sections in (steps[2:], ("update",), ("pack",)):
            yield from check_nodes(built, sections, before=progress)
        self.snapshots = (first, self.snapshot(program))

    def entries(self, threads: int, progress: Progress) -> Iterator[Held]:
        """The program through its entries, each of them held against the walk."""
        program = Program(self.built.library, self.built.program.manifest, threads=threads)
        first, last = self.snapshots
        self.start(program)
        plan: tuple[tuple[str, tuple[Section, ...], dict[str, Array]], ...] = (
            ("init", ("init", "pack"), first),
            ("forward", ("forward",), first),
            ("step", ("forward", "backward"), first),
            ("step", ("forward", "backward"), last),
            ("update", ("update", "pack"), last),
            ("repack", ("pack",), last),
        )
        for i, (entry, sections, wanted) in enumerate(plan):
            if entry not in program.manifest.entries:
                continue
            self.poison(program, sections)
            if i == 3:
                self.put_second(program)
            progress(f"entry {entry} on {threads} threads")
            program.call(entry)
            yield self._held(program, entry, threads, sections, wanted)
        program.close()

    def _held(
        self,
        program: Program,
        entry: str,
        threads: int,
        sections: tuple[Section, ...],
        wanted: Mapping[str, Array],
    ) -> Held:
        all_nodes = self.built.graph.nodes
        nodes = [node for section in sections for node in all_nodes if node.section == section]
        n_values, found = 0, []
        for node in nodes:
            ids = [value.id for value in node.outputs]
            n_values += sum(wanted[id].size for id in ids)
            bad = [id for id in ids if program.view(id).tobytes() != wanted[id].tobytes()]
            if bad:
                with np.errstate(all="ignore"):
                    error = max(relative_error(program.view(id), wanted[id]) for id in bad)
                found.append(Parted(node.id, entry, threads, error))
        return Held(len(nodes), n_values, tuple(found), tuple(program.check_guards()))

    def start(self, program: Program) -> None:
        """The first microbatch: states in place, and NaN wherever nothing has been computed."""
        self.poison(program, ("init", "pack", "forward", "backward", "update"))
        states = {**self.subject.parameters, **unread_gradients(self.built.graph)}
        self._put(program, {**states, **self.refereed.moments})
        self._put(program, {**self.subject.inputs(0), **self.subject.update_inputs()})

    def put_second(self, program: Program) -> None:
        """The second microbatch, on top of the gradients of the first."""
        self.poison(program, ("forward", "backward"))
        self._put(program, self.subject.inputs(1))

    def poison(self, program: Program, sections: Iterable[Section]) -> None:
        """Fills what these sections compute, unless it is a state, with NaN."""
        chosen = set(sections)
        for node in self.built.graph.nodes:
            for value in node.outputs if node.section in chosen else ():
                if value.id not in self.built.graph.writes:
                    program.view(value.id)[...] = np.nan

    def _put(self, program: Program, values: Mapping[str, Array]) -> None:
        for id, array in values.items():
            program.view(id)[...] = array

    def snapshot(self, program: Program) -> dict[str, Array]:
        """A copy of every value that a node makes."""
        made = (value.id for node in self.built.graph.nodes for value in node.outputs)
        return {id: program.view(id).copy() for id in made}
