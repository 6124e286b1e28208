"""Who is nearer the truth, our program or transformers in float32: both against its float64."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any, Literal

import numpy as np

from lockstep.build import Built
from lockstep.ir import Array
from lockstep.proof.compare import Findings
from lockstep.proof.referee import Refereed
from lockstep.proof.subject import STEP, Subject
from lockstep.proof.tolerances import COMPARE_FACTOR, COMPARE_FLOOR
from lockstep.proof.twin import require_oracle

What = Literal["logits", "loss", "gradient", "parameter"]


@dataclass(frozen=True, kw_only=True)
class Near:
    """One tensor: root mean square of both errors, over the largest element of the truth."""

    node: str
    what: What
    n: int
    ours: float
    theirs: float

    @property
    def bound(self) -> float:
        """How large our error may be."""
        return max(COMPARE_FACTOR.value * self.theirs, COMPARE_FLOOR.value)

    @property
    def ok(self) -> bool:
        """Whether we are about as near the truth as they are."""
        return self.ours <= self.bound


def nearness(
    built: Built, subject: Subject, refereed: Refereed, findings: Findings
) -> tuple[Near, ...]:
    """Logits and loss of the second microbatch, every gradient, and what the update changed.

    Raises: EnvironmentLacks if torch or transformers is not installed.
    """
    oracle = require_oracle()
    truth = _answer(oracle, subject, refereed, "float64")
    theirs = _answer(oracle, subject, refereed, "float32")
    ours = _ours(built, subject, findings)
    nodes = {target: value for value, target in built.graph.writes.items()}
    found = []
    for (what, id), exact in truth.items():
        node = {"logits": "head", "loss": built.graph.outputs["loss"]}.get(what) or nodes[id]
        near = Near(
            node=_producer(built, node),
            what=what,
            n=int(np.size(exact)),
            ours=_error(ours[what, id], exact),
            theirs=_error(theirs[what, id], exact),
        )
        found.append(near)
    return tuple(found)


Key = tuple[What, str]


def _answer(oracle: Any, subject: Subject, refereed: Refereed, precision: str) -> dict[Key, Array]:
    """What transformers says; the change of a parameter is in the measure of the update."""
    family, config = subject.model.family, subject.model.config
    model = oracle.hf_model(family, config, subject.parameters, precision=precision)
    first, second = (model.losses_and_gradients(*m) for m in subject.microbatches)
    parts = (first.n_tokens / subject.n_targets, second.n_tokens / subject.n_targets)
    found: dict[Key, Array] = {
        ("logits", ""): second.logits.reshape(-1, config.vocab),
        ("loss", ""): np.array(second.loss * second.n_tokens),
    }
    for id, gradient in first.gradients.items():
        wide = (gradient.astype(np.float64), second.gradients[id].astype(np.float64))
        found["gradient", f"{id}@grad"] = parts[0] * wide[0] + parts[1] * wide[1]
    optimizer = subject.optimizer
    trained = oracle.train(
        family,
        config,
        subject.parameters,
        [[tuple(m) for m in subject.microbatches]],
        [subject.lr],
        optimizer=oracle.OptimizerSettings(
            name=optimizer.kind,
            beta1=optimizer.beta1,
            beta2=optimizer.beta2,
            eps=optimizer.eps,
            weight_decay=optimizer.weight_decay,
            max_norm=subject.max_norm,
        ),
        precision=precision,
        first_step=STEP,
        moments=refereed.moments or None,
    )
    for id, array in trained.parameters.items():
        found["parameter", id] = _change(array, subject.parameters[id])
    return found


def _ours(built: Built, subject: Subject, findings: Findings) -> Mapping[Key, Array]:
    states, graph = findings.states, built.graph
    written = {target: states[value] for value, target in graph.writes.items()}
    found: dict[Key, Array] = {
        ("logits", ""): states["head"],
        ("loss", ""): states[graph.outputs["loss"]],
    }
    for id in subject.parameters:
        found["gradient", f"{id}@grad"] = written[f"{id}@grad"]
        found["parameter", id] = _change(written[id], subject.parameters[id])
    return found


def _change(after: Array, before: Array) -> Array:
    return after.astype(np.float64) - before.astype(np.float64)


def _error(found: Array, exact: Array) -> float:
    """Root mean square over the largest element; infinite where one is not finite."""
    if found.shape != exact.shape or found.size == 0:
        return inf
    error = found.astype(np.float64) - exact
    if not (np.isfinite(error).all() and np.isfinite(exact).all()):
        return inf
    scale = float(np.abs(exact).max())
    rms = float(np.sqrt(np.mean(np.square(error))))
    return rms / scale if scale else (inf if rms else 0.0)


def _producer(built: Built, value: str) -> str:
    return built.graph.producers()[value].id
