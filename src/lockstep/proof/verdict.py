"""What a comparison found, as the record that a run directory keeps."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from math import isfinite

from lockstep.artifacts import utc_now
from lockstep.artifacts.compare import Compare, Comparison, Guilty, NodeRow
from lockstep.build import Built
from lockstep.codegen.emit import FILE
from lockstep.native.manifest import NodeRecord
from lockstep.proof.compare import THREADS, Findings, Parted
from lockstep.proof.nearness import Near
from lockstep.proof.subject import Subject
from lockstep.proof.tolerances import COMPARE_FACTOR
from lockstep.proof.walk import NodeCheck

OURS = "Generated C, node by node"
WHOLE = f"Generated C as a whole, on {', '.join(map(str, THREADS))} threads"
REFEREE = "the float64 reference of each op"
NODES = "its nodes one at a time, to the bit"
TRUTH = "transformers in float64, beside transformers in float32"

_WHY = {
    "comparisons.nodes.peer_error": "only the comparison with transformers has a peer",
    "comparisons.nodes.local_error": "transformers has no nodes of ours to run alone, or the error "
    "is not finite",
    "comparisons.nodes.cumulative_error": "bits are compared on the same inputs, or the error is "
    "not finite",
}


def record_of(
    built: Built,
    subject: Subject,
    findings: Findings,
    near: Iterable[Near],
    *,
    run_dir: str,
    lacks: str,
) -> Compare:
    """The record; `lacks` says why there is nothing of transformers, where there is not."""
    writer = _Writer(built, findings)
    comparisons = [writer.node_by_node(), writer.whole()]
    if not lacks:
        comparisons.append(writer.beside_transformers(tuple(near)))
    batch, tokens = subject.shape
    reasons = dict(_WHY)
    if lacks:
        reasons["transformers"] = lacks
    return Compare(
        generated_at=utc_now(),
        run_dir=run_dir,
        graph=f"{built.graph.name}, {len(built.graph.nodes)} nodes",
        batch=f"2 microbatches of {batch} x {tokens} tokens, {subject.rows}, {subject.weights}",
        passed=all(pair.passed for pair in comparisons),
        comparisons=tuple(comparisons),
        not_measured=reasons,
    )


class _Writer:
    """Makes the comparisons of one program."""

    def __init__(self, built: Built, findings: Findings) -> None:
        self.findings = findings
        self.graph = built.graph
        self.nodes = {node.id: node for node in built.program.manifest.nodes}

    def node_by_node(self) -> Comparison:
        """Each node against the float64 reference of its op."""
        worst = self.findings.worst()
        culprits = [check.id for check in worst.values() if not check.ok]
        heirs = self._heirs(culprits)
        guilty = next((check for check in self.findings.checks if not check.ok), None)
        broken = self.findings.guards
        why = _why(guilty) if guilty else f"wrote beyond {', '.join(broken)}" if broken else ""
        first = guilty.id if guilty else self._writer_of(broken[0]) if broken else None
        rows = tuple(
            self._walked(worst[id], id in heirs, why if id == first else "")
            for id in self.nodes
            if id in worst
        )
        return Comparison(
            left=OURS,
            right=REFEREE,
            passed=first is None and len(rows) == len(self.nodes) > 0,
            nodes_compared=len(rows),
            values_compared=sum(check.n_elements for check in self.findings.checks),
            first_guilty=self._guilty(first, why) if first else None,
            nodes=rows,
        )

    def whole(self) -> Comparison:
        """The program's own entries against its nodes one at a time."""
        parted: dict[str, Parted] = {}
        for found in self.findings.parted:
            parted.setdefault(found.id, found)
        rows = tuple(
            self._row(
                node,
                n_values=sum(self.findings.states[id].size for id in node.outputs),
                local=parted[node.id].error if node.id in parted else 0.0,
                bound=0.0,
                why="the same kernels on the same inputs",
                verdict="ok"
                if node.id not in parted
                else "culprit"
                if node.id == self.findings.parted[0].id
                else "victim",
            )
            for node in self.nodes.values()
        )
        first = self.findings.parted[0] if self.findings.parted else None
        why = f"differs in entry {first.entry} on {first.threads} threads" if first else ""
        return Comparison(
            left=WHOLE,
            right=NODES,
            passed=first is None and self.findings.n_entry_nodes >= len(self.nodes) > 0,
            nodes_compared=self.findings.n_entry_nodes,
            values_compared=self.findings.n_entry_values,
            first_guilty=self._guilty(first.id, why) if first else None,
            nodes=rows,
        )

    def beside_transformers(self, near: tuple[Near, ...]) -> Comparison:
        """Logits, loss, gradients and updates, beside another implementation."""
        rows = tuple(
            self._row(
                self.nodes[found.node],
                n_values=found.n,
                cumulative=found.ours,
                peer=found.theirs,
                bound=found.bound,
                why=f"{COMPARE_FACTOR.value:g} times transformers' own float32 error",
                verdict="ok" if found.ok else "victim",
            )
            for found in near
        )
        first = next((found for found in near if not found.ok), None)
        why = (
            f"{first.what} off by {first.ours:.3g}, transformers by {first.theirs:.3g}"
            if first
            else ""
        )
        return Comparison(
            left="Generated C",
            right=TRUTH,
            passed=first is None and len(rows) > 0,
            nodes_compared=len(rows),
            values_compared=sum(found.n for found in near),
            first_guilty=self._guilty(first.node, why) if first else None,
            nodes=rows,
        )

    def _walked(self, check: NodeCheck, is_heir: bool, blame: str) -> NodeRow:
        cumulative = self.findings.cumulative[check.id]
        verdict = "ok"
        if blame or not check.ok:
            verdict = "culprit"
        elif is_heir and not cumulative <= check.bound:
            verdict = "victim"
        return self._row(
            self.nodes[check.id],
            n_values=check.n_elements,
            cumulative=cumulative,
            local=check.local_error,
            bound=check.bound,
            why=check.why,
            verdict=verdict,
            reason=blame if check.ok else _why(check),
        )

    def _row(
        self,
        node: NodeRecord,
        *,
        n_values: int,
        bound: float,
        why: str,
        verdict: str,
        cumulative: float | None = None,
        local: float | None = None,
        peer: float | None = None,
        reason: str = "",
    ) -> NodeRow:
        return NodeRow(
            id=node.id,
            op=node.op,
            phase=node.section,  # type: ignore[arg-type]  # the manifest's sections are the phases
            n_values=n_values,
            cumulative_error=_finite(cumulative),
            local_error=_finite(local),
            peer_error=_finite(peer),
            bound=bound,
            bound_why=why,
            verdict=verdict,  # type: ignore[arg-type]
            c_line=node.line,
            covers=node.covers,
            reason=reason,
        )

    def _guilty(self, id: str, why: str) -> Guilty:
        node = self.nodes[id]
        return Guilty(
            id=id,
            op=node.op,
            phase=node.section,  # type: ignore[arg-type]
            c_file=FILE,
            c_line=node.line,
            kernel_source=node.kernel_source,
            why=why,
        )

    def _writer_of(self, value: str) -> str:
        """The node whose output is this value, or shares its bytes."""
        writes = {target: made for made, target in self.graph.writes.items()}
        producers = self.graph.producers()
        made = writes.get(value, value)
        return producers[made].id if made in producers else next(iter(self.nodes))

    def _heirs(self, culprits: Collection[str]) -> set[str]:
        """The nodes that read, by whatever way, what a culprit made."""
        wrong: set[str] = set()
        heirs: set[str] = set()
        states = {g.id for g in self.graph.with_role("gradient")}
        for node in [*self.graph.nodes, *self.graph.nodes]:  # again: states carry over to step two
            inherits = not wrong.isdisjoint(i for i in node.inputs if i)
            if inherits and node.id not in culprits:
                heirs.add(node.id)
            if inherits or node.id in culprits:
                made = {value.id for value in node.outputs}
                wrong |= made | {self.graph.writes[id] for id in made if id in self.graph.writes}
                if not wrong.isdisjoint(states):
                    wrong.add("gradients")
        return heirs


def _finite(error: float | None) -> float | None:
    return error if error is not None and isfinite(error) else None


def _why(check: NodeCheck) -> str:
    """Why a node is guilty, in one line."""
    if check.stray_writes:
        return f"wrote to {', '.join(check.stray_writes[:3])}, which it does not own"
    if check.overflows:
        return "makes infinities or NaN of finite numbers"
    if not isfinite(check.local_error):
        return "not finite, or of another shape, where the reference has a number"
    return f"local error {check.local_error:.3g} is over {check.bound:.3g} ({check.why})"
