"""Replays the first steps of a recipe on a program of its own, and snapshots of its whole state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256

import numpy as np

from lockstep.artifacts.stage_evidence import Digests
from lockstep.build import Built, OptimizerSpec, training_program
from lockstep.engine.trainer import Microbatch, TrainingSession
from lockstep.ir import Array
from lockstep.native import Program
from lockstep.proof.twin import Recipe, parameters_sha256


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """What a replay gave; the curves hold (step, value)."""

    losses: tuple[tuple[int, float], ...]
    grad_norms: tuple[tuple[int, float], ...]
    parameters: Mapping[str, Array]
    digests: Digests


def build_for(recipe: Recipe, *, threads: int) -> Built:
    """The recipe's training program, as `train` builds it."""
    return training_program(
        recipe.model.family,
        recipe.model.config,
        batch=recipe.per_call,
        tokens=recipe.settings.seq_len,
        optimizer=OptimizerSpec(kind=recipe.settings.optimizer, **asdict(recipe.config.adamw)),
        threads=threads,
    )


def start_session(recipe: Recipe, *, threads: int) -> TrainingSession:
    """A session at the start of the recipe."""
    program = build_for(recipe, threads=threads).program
    session = TrainingSession(program, batch=recipe.per_call, tokens=recipe.settings.seq_len)
    zeros = {id: np.zeros_like(array) for id, array in session.moments().items()}
    session.begin(recipe.start, zeros)
    return session


def replay(recipe: Recipe, *, threads: int) -> Replayed:
    """Runs every step of the recipe from its start."""
    session = start_session(recipe, threads=threads)
    results = [
        session.step(microbatches, lr=lr, max_grad_norm=recipe.settings.max_grad_norm)
        for microbatches, lr in zip(recipe.steps, recipe.lrs, strict=True)
    ]
    losses = [result.loss for result in results]
    return Replayed(
        losses=tuple(enumerate(losses, 1)),
        grad_norms=tuple(enumerate((result.grad_norm for result in results), 1)),
        parameters={id: array.copy() for id, array in session.parameters().items()},
        digests=digests(session, losses),
    )


def digests(session: TrainingSession, losses: Iterable[float]) -> Digests:
    """The hashes of all results of a session."""
    return Digests(
        losses=sha256(np.array(list(losses), np.float64).tobytes()).hexdigest(),
        params=parameters_sha256(session.parameters()),
        moments=parameters_sha256(session.moments()),
    )


# The hash of no tensors at all, which proves nothing about any.
NO_TENSORS = parameters_sha256({})


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All states of a program, in the middle of a step or between two."""

    states: Mapping[str, Array]

    @classmethod
    def of(cls, program: Program) -> Snapshot:
        """Copies parameters, moments and gradient sums."""
        return cls({id: program.view(id).copy() for id in _states(program)})

    def restore(self, program: Program) -> None:
        """Puts every state into another program, and packs its parameters."""
        for id in _states(program):
            program.view(id)[...] = self.states[id]
        program.call("init")


def _states(program: Program) -> list[str]:
    roles = ("parameter", "moment", "gradient")
    return [id for id, value in program.manifest.values.items() if value.role in roles]


def accumulate(
    program: Program, microbatches: Sequence[Microbatch], *, first: int, n_targets: int
) -> float:
    """Adds the gradients of some microbatches of a step, the first of them number `first`.

    Returns the sum of their losses; `n_targets` are those of the whole step.
    """
    total = 0.0
    program.view("scale")[...] = np.float32(1.0 / n_targets)
    for number, microbatch in enumerate(microbatches, first):
        program.view("tokens")[:] = microbatch.tokens.reshape(-1)
        program.view("targets")[:] = microbatch.targets.reshape(-1)
        program.view("accumulate")[...] = number > 0
        program.call("step")
        total += float(program.view(program.manifest.outputs["loss"]))
    return total


def update(program: Program, step: int, *, lr: float, max_norm: float) -> None:
    """Applies the gradients that have been added up."""
    program.view("lr")[...] = lr
    program.view("max_norm")[...] = max_norm
    if "step" in program.manifest.values:  # SGD does not ask which step it is
        program.view("step")[...] = step
    program.call("update")
