"""The update section: the norm of all gradients, clipping, and one optimizer node per parameter."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from lockstep.errors import UsageError
from lockstep.ir import Graph, Value, check, f32, flat_layout, i32
from lockstep.ops import OPS


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSpec:
    """Which optimizer, and its constants; what changes with the step is an input of the graph."""

    kind: Literal["adamw", "sgd"] = "adamw"
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in ("adamw", "sgd"):
            raise UsageError(f"optimizer kind: expected adamw or sgd, got {self.kind!r}")
        for name, top in (("beta1", 1.0), ("beta2", 1.0), ("eps", 1.0), ("weight_decay", 1.0)):
            if not 0.0 <= getattr(self, name) < top:
                got = getattr(self, name)
                raise UsageError(f"optimizer {name}: expected 0 or more and less than 1, got {got}")


def add_optimizer(
    graph: Graph, spec: OptimizerSpec, *, decayed: Collection[str], gap_bytes: int = 0
) -> Graph:
    """The graph with its update section; `decayed` are the parameters that weight decay applies to.

    `gap_bytes` is the room for guards behind each gradient in its arena, which the norm runs over.
    """
    graph = graph.with_nodes(graph.nodes)
    graph.section = "update"
    n_bytes = flat_layout(graph.with_role("gradient"), {}, gap_bytes).n_bytes
    gradients_P = graph.input("gradients", f32(n_bytes // 4), "gradients")
    max_norm = graph.input("max_norm", f32(), "input")
    lr = graph.input("lr", f32(), "input")
    squares_S = graph.add(OPS["sum_squares"], "clip.squares", gradients_P)
    norm, coef = graph.add_node(OPS["clip_scale"], "clip", squares_S, max_norm)
    step = graph.input("step", i32(), "input") if spec.kind == "adamw" else None
    for parameter in graph.with_role("parameter"):
        weight_decay = spec.weight_decay if parameter.id in decayed else 0.0
        if step is None:
            _sgd(graph, parameter, coef, lr, weight_decay)
        else:
            _adamw(graph, parameter, coef, lr, step, spec, weight_decay)
    graph.outputs = {**graph.outputs, "grad_norm": norm.id}
    return check(graph, "training")


def _sgd(graph: Graph, p: Value, coef: Value, lr: Value, weight_decay: float) -> None:
    gradient = graph.value(f"{p.id}@grad")
    op = OPS["sgd"]
    new = graph.add(op, f"{p.id}@sgd", p, gradient, coef, lr, weight_decay=weight_decay)
    graph.writes[new.id] = p.id


def _adamw(
    graph: Graph,
    p: Value,
    coef: Value,
    lr: Value,
    step: Value,
    spec: OptimizerSpec,
    weight_decay: float,
) -> None:
    gradient = graph.value(f"{p.id}@grad")
    moments = [graph.input(f"{p.id}@{name}", p.type, "moment") for name in ("m", "v")]
    new = graph.add_node(
        OPS["adamw"],
        f"{p.id}@adamw",
        p,
        gradient,
        *moments,
        coef,
        lr,
        step,
        beta1=spec.beta1,
        beta2=spec.beta2,
        eps=spec.eps,
        weight_decay=weight_decay,
    )
    for value, state in zip(new, (p, *moments), strict=True):
        graph.writes[value.id] = state.id
