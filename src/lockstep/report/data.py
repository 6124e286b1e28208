"""What the page shows, as plain data: the template only arranges it."""

from __future__ import annotations

import base64
import math
import re
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from lockstep.artifacts import RunDir
from lockstep.artifacts.compare import NodeRow
from lockstep.artifacts.graph_file import GraphFile, GraphNode
from lockstep.artifacts.samples import Sample
from lockstep.report.curves import Curve, curves_of
from lockstep.report.evidence import RunEvidence, Source, gather
from lockstep.report.gates import Gate, gates_of, stale_weights
from lockstep.report.layout import Layout, lay_out
from lockstep.report.speed import Speed, speed_of
from lockstep.report.tokens import TokenRow, rows_of

_ROOT = re.compile(r"""\s*<svg((?:[^<>"']|"[^"]*"|'[^']*')*)>""")
VERDICTS = ("pass", "fail", "missing")


@dataclass(frozen=True, kw_only=True)
class Card:
    """One drawn sample; `image` is an address that holds the SVG, empty if there is none."""

    index: int
    prompt: str
    image: str
    error: str
    text: str
    predicates: tuple[tuple[str, bool], ...]
    exact_copy: bool

    @property
    def kind(self) -> str:
        """What the filter goes by."""
        if not self.image:
            return "invalid"
        return "faithful" if all(holds for _, holds in self.predicates) else "unfaithful"


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A share, with what it is a share of."""

    name: str
    count: int
    total: int

    @property
    def percent(self) -> str:
        """The share in per cent, or a dash if there is nothing to share."""
        return f"{100 * self.count / self.total:.1f} %" if self.total else "–"


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """All samples, none left out, and their rates."""

    cards: tuple[Card, ...]
    rates: tuple[Rate, ...]
    stale: str
    lack: str


@dataclass(frozen=True, kw_only=True)
class Page:
    """Everything on the page."""

    name: str
    verdict: str
    counts: dict[str, int]
    facts: tuple[tuple[str, str], ...]
    gates: tuple[Gate, ...]
    curves: tuple[Curve, ...]
    speed: Speed
    layout: Layout | None
    ops: dict[str, str]
    shapes: dict[str, str]
    graph_lack: str
    tokens: tuple[TokenRow, ...]
    gallery: Gallery
    compare_rows: tuple[dict[str, Any], ...]
    sources: tuple[Source, ...]
    lacks: tuple[tuple[str, str], ...]
    script_data: dict[str, Any]

    @property
    def n_checks(self) -> int:
        """How many checks there are, missing ones included."""
        return sum(self.counts.values())


def page_of(run_dir: RunDir) -> Page:
    """Reads the run directory and decides what is shown.

    Raises: InputError if there is no run directory.
    """
    run = gather(run_dir)
    gates, curves = gates_of(run), curves_of(run)
    counts: Counter[str] = Counter(check.verdict for gate in gates for check in gate.checks)
    return Page(
        name=run_dir.name,
        verdict=next((v for v in ("fail", "missing") if counts[v]), "pass"),
        counts={verdict: counts[verdict] for verdict in VERDICTS},
        facts=_facts(run),
        gates=gates,
        curves=curves,
        speed=speed_of(run),
        layout=lay_out(run.graph) if run.graph else None,
        ops={node.id: node.op for node in run.graph.nodes} if run.graph else {},
        shapes={node.id: _shape(node) for node in run.graph.nodes} if run.graph else {},
        graph_lack=run.lack(GraphFile.file),
        tokens=rows_of(run),
        gallery=_gallery(run),
        compare_rows=_compare_rows(run),
        sources=run.sources,
        lacks=tuple(sorted(run.lacks.items())),
        script_data={
            "curves": [asdict(curve) for curve in curves],
            "graph": _graph_details(run),
        },
    )


def _facts(run: RunEvidence) -> tuple[tuple[str, str], ...]:
    facts: list[tuple[str, str]] = []
    if run.config:
        c = run.config
        facts += [
            ("family", c.template),
            ("parameters", f"{c.n_parameters:,}".replace(",", " ")),
            ("layers", f"{c.num_layers}"),
            ("width · ffn", f"{c.embed_dim} · {c.hidden_dim}"),
            ("heads", f"{c.num_heads} / {c.num_kv_heads}"),
            ("context", f"{c.context_len}"),
            ("vocabulary", f"{c.vocab_size}"),
        ]
    if run.manifest:
        facts.append(("promoted step", f"{run.manifest.step}"))
    if run.demo:
        facts.append(("demo", f"{run.demo.seconds:.0f} s, {run.demo.generated_at}"))
    return tuple(facts)


def _gallery(run: RunEvidence) -> Gallery:
    found = run.samples
    if found is None:
        return Gallery(cards=(), rates=(), stale="", lack=run.lack("samples.json"))
    n = len(found.rows)
    rates = (
        Rate(name="valid SVG", count=found.n_valid, total=n),
        Rate(name="predicates true", count=found.n_predicates_true, total=found.n_predicates),
        Rate(name="exact copies of training rows", count=found.n_exact_copies, total=n),
    )
    return Gallery(
        cards=tuple(_card(i, sample) for i, sample in enumerate(found.rows)),
        rates=rates,
        stale=stale_weights(run, found.weights_sha256),
        lack="",
    )


def _card(index: int, sample: Sample) -> Card:
    image = ""
    if sample.svg is not None:
        data = base64.b64encode(_standalone(sample.svg).encode("utf-8")).decode("ascii")
        image = f"data:image/svg+xml;base64,{data}"
    return Card(
        index=index,
        prompt=sample.prompt,
        image=image,
        error=sample.error,
        text=sample.text,
        predicates=tuple(sample.predicates.items()),
        exact_copy=sample.exact_copy,
    )


def _standalone(svg: str) -> str:
    """The drawing with the name space that a browser needs to know it by."""
    root = _ROOT.match(svg)
    if root is None or "xmlns=" in root[1]:
        return svg
    return f'<svg xmlns="http://www.w3.org/2000/svg"{svg[root.start(1) :]}'


def _compare_rows(run: RunEvidence, worst: int = 8) -> tuple[dict[str, Any], ...]:
    """For each comparison the nodes that are nearest to their bounds, or over them."""
    rows = []
    for pair in run.compare.comparisons if run.compare else ():
        nearest = sorted(pair.nodes, key=_nearness, reverse=True)
        rows.append({"pair": pair, "worst": [row for row in nearest[:worst] if _nearness(row)]})
    return tuple(rows)


def _nearness(row: NodeRow) -> float:
    """The error over its bound; what has no number, and is judged bad all the same, comes first."""
    error = row.cumulative_error if row.local_error is None else row.local_error
    if error is None or not row.bound:
        return math.inf if row.verdict in ("culprit", "victim") else 0.0
    return error / row.bound


def _shape(node: GraphNode) -> str:
    """The type of the first output, for example f32 M×96."""
    if not node.outputs:
        return "makes nothing"
    first = node.outputs[0]
    return f"{first.dtype} " + ("×".join(map(str, first.dims)) or "scalar")


def _graph_details(run: RunEvidence) -> dict[str, Any]:
    """What a click on a node shows: shapes, and how the node compared."""
    if run.graph is None:
        return {"nodes": [], "values": {}}
    values = {v.id: [v.dtype, list(v.dims)] for v in run.graph.inputs}
    values |= {v.id: [v.dtype, list(v.dims)] for node in run.graph.nodes for v in node.outputs}
    errors: dict[str, list[list[str]]] = {}
    for pair in run.compare.comparisons if run.compare else ():
        for row in pair.nodes:
            shown = "not measured" if row.local_error is None else f"{row.local_error:.3g}"
            errors.setdefault(row.id, []).append([pair.right, row.verdict, shown])
    nodes = [
        {
            "id": node.id,
            "op": node.op,
            "section": node.section,
            "inputs": list(node.inputs),
            "outputs": [v.id for v in node.outputs],
            "covers": list(node.covers),
            "compared": errors.get(node.id, []),
        }
        for node in run.graph.nodes
    ]
    return {"nodes": nodes, "values": values}
