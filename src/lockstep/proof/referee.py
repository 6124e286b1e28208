"""The float64 side of a comparison: two microbatches and an update, on the ops' references."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lockstep.build import Built
from lockstep.ir import Array, Graph, Section, interpret
from lockstep.proof.subject import Subject

_UPDATE: tuple[Section, ...] = ("update",)
_PACK: tuple[Section, ...] = ("pack",)


@dataclass(frozen=True, kw_only=True)
class Refereed:
    """Every value as the last run of its node leaves it, and the moments that the update met."""

    values: Mapping[str, Array]
    moments: Mapping[str, Array]


def referee(built: Built, subject: Subject, seed: int = 0) -> Refereed:
    """Runs the lowered graph of the program in float64.

    The moments are drawn in the measure of each gradient, so that neither of the two drowns the
    other in an update.
    """
    graph = built.graph
    given: dict[str, Array] = {**subject.parameters, **unread_gradients(graph)}
    with np.errstate(all="ignore"):  # parameters may be anything, also not finite
        first = interpret(
            graph, {**given, **subject.inputs(0)}, ("init", "pack", "forward", "backward")
        )
        given = {**first, **_gradients(graph, first)}
        second = interpret(graph, {**given, **subject.inputs(1)}, ("forward", "backward"))
        gradients = _gradients(graph, second)
        moments = drawn_moments(graph, gradients, seed)
        given = {
            **subject.parameters,
            **gradients,
            **moments,
            **subject.update_inputs(),
            "gradients": _flat(built, gradients),
        }
        updated = interpret(graph, given, _UPDATE)
        new = {p: updated[value] for value, p in graph.writes.items() if p in subject.parameters}
        packed = interpret(graph, new, _PACK)
    return Refereed(values={**second, **updated, **packed}, moments=moments)


def unread_gradients(graph: Graph) -> dict[str, Array]:
    """What the gradient states hold before the first microbatch, which must not read them."""
    return {
        g.id: np.full(g.type.shape({}), np.nan, np.float32) for g in graph.with_role("gradient")
    }


def _gradients(graph: Graph, values: Mapping[str, Array]) -> dict[str, Array]:
    states = {g.id for g in graph.with_role("gradient")}
    return {state: values[value] for value, state in graph.writes.items() if state in states}


def drawn_moments(graph: Graph, gradients: Mapping[str, Array], seed: int) -> dict[str, Array]:
    """A float32 state of the optimizer such as steps with gradients of this size leave."""
    rng = np.random.default_rng(seed)
    found = {}
    for moment in graph.with_role("moment"):
        parameter, _, kind = moment.id.rpartition("@")
        gradient = gradients[f"{parameter}@grad"]
        size = float(np.sqrt(np.nanmean(np.square(gradient)))) or 1e-3
        size = size if np.isfinite(size) else 1e-3
        if kind == "m":
            drawn = 0.5 * size * rng.standard_normal(gradient.shape)
        else:
            drawn = size**2 * rng.uniform(0.25, 2.0, gradient.shape)
        found[moment.id] = drawn.astype(np.float32)
    return found


def _flat(built: Built, gradients: Mapping[str, Array]) -> Array:
    """All gradients as the program's arena holds them: zeros between them."""
    flat_P = np.zeros(built.graph.value("gradients").type.shape({}))
    for id, gradient in gradients.items():
        first = built.program.manifest.values[id].offset // 4
        flat_P[first : first + gradient.size] = gradient.reshape(-1)
    return flat_P
