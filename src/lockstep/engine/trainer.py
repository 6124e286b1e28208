"""One training step: several microbatches, one clipped update."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lockstep.errors import InputError, UsageError
from lockstep.native import Program

IGNORED = -1  # a target that counts for nothing


class Microbatch(NamedTuple):
    """Sequences, and for each position the token that follows or -1 where none is asked for.

    Shapes: both (B, T).
    """

    tokens: NDArray[Any]
    targets: NDArray[Any]

    @property
    def n_targets(self) -> int:
        """How many positions count."""
        return int((self.targets != IGNORED).sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What a step did: the mean loss per target, and the gradient norm before clipping."""

    loss: float
    grad_norm: float
    lr: float
    n_targets: int


# Rows of activations that one call works on. More of them leave the caches between a node and its
# gradient; adding up the gradients of several calls costs less.
ROWS_PER_CALL = 512


def sequences_per_call(batch: int, tokens: int) -> int:
    """How many sequences of a batch a program takes at once: a divisor of the batch."""
    fitting = (n for n in range(batch, 0, -1) if batch % n == 0 and n * tokens <= ROWS_PER_CALL)
    return next(fitting, 1)


class TrainingSession:
    """A training program with its parameters, gradients and moments."""

    def __init__(self, program: Program, *, batch: int, tokens: int) -> None:
        self.program = program
        self.shape = (batch, tokens)
        self.step_count = 0
        program.view("positions")[:] = np.tile(np.arange(tokens, dtype=np.int32), batch)
        # Looked up once: a step of a small model takes no longer than a hundred look-ups.
        names = ("tokens", "targets", "scale", "accumulate", "lr", "max_norm", "step")
        known = program.manifest.values
        self._inputs = {name: program.view(name) for name in names if name in known}
        self._outputs = {name: program.view(id) for name, id in program.manifest.outputs.items()}

    def parameters(self) -> dict[str, NDArray[Any]]:
        """The parameters by id, as views of the program's memory."""
        return self._with_role("parameter")

    def moments(self) -> dict[str, NDArray[Any]]:
        """The optimizer's moments by id, as views; none for SGD."""
        return self._with_role("moment")

    def gradients(self) -> dict[str, NDArray[Any]]:
        """The gradients of the last step by id, summed over its microbatches, before clipping."""
        return self._with_role("gradient")

    def _with_role(self, role: str) -> dict[str, NDArray[Any]]:
        values = self.program.manifest.values
        return {id: self.program.view(id) for id, v in values.items() if v.role == role}

    def begin(
        self,
        parameters: Mapping[str, NDArray[Any]] | None = None,
        moments: Mapping[str, NDArray[Any]] | None = None,
        *,
        step_count: int = 0,
    ) -> None:
        """Puts parameters and moments in place (None: as they are in memory) and packs them.

        Raises: InputError if their names or shapes are not those of the program.
        """
        if parameters is not None:
            _fill(self.parameters(), parameters, "parameters")
        if moments is not None:
            _fill(self.moments(), moments, "moments")
        self.step_count = step_count
        self.program.call("init")

    def step(
        self, microbatches: Sequence[Microbatch], *, lr: float, max_grad_norm: float
    ) -> StepResult:
        """Adds up the gradient of all targets, weighted alike, and applies one update.

        A `max_grad_norm` of 0 does not clip.

        Raises: UsageError if a microbatch has another shape, or nothing is to be predicted.
        """
        total = self._accumulate(microbatches)
        self.step_count += 1
        self._inputs["lr"][...] = lr
        self._inputs["max_norm"][...] = max_grad_norm
        if "step" in self._inputs:  # SGD does not ask which step it is
            self._inputs["step"][...] = self.step_count
        self.program.call("update")
        n_targets = sum(m.n_targets for m in microbatches)
        return StepResult(
            loss=total / n_targets,
            grad_norm=float(self._outputs["grad_norm"]),
            lr=float(self._inputs["lr"]),
            n_targets=n_targets,
        )

    def _accumulate(self, microbatches: Sequence[Microbatch]) -> float:
        """The sum of all losses; the gradients of their mean are in place afterwards."""
        n_targets = sum(m.n_targets for m in microbatches)
        if n_targets == 0:
            raise UsageError(
                "training step: expected at least one target, got none",
                hint="check the data: rows of one token have nothing to predict",
            )
        total = 0.0
        self._inputs["scale"][...] = np.float32(1.0 / n_targets)
        for i, microbatch in enumerate(microbatches):
            self._put(microbatch)
            self._inputs["accumulate"][...] = i > 0
            self.program.call("step")
            total += self._loss()
        return total

    def evaluate(self, microbatches: Sequence[Microbatch]) -> float:
        """The mean loss per target with the parameters as they are.

        Raises: UsageError if nothing is to be predicted.
        """
        n_targets = sum(m.n_targets for m in microbatches)
        if n_targets == 0:
            raise UsageError("evaluation: expected at least one target, got none")
        total = 0.0
        for microbatch in microbatches:
            self._put(microbatch)
            self.program.call("forward")
            total += self._loss()
        return total / n_targets

    def _put(self, microbatch: Microbatch) -> None:
        for name, array in zip(("tokens", "targets"), microbatch, strict=True):
            if array.shape != self.shape:
                raise UsageError(f"{name}: expected shape {self.shape}, got {array.shape}")
            self._inputs[name][:] = array.reshape(-1)

    def _loss(self) -> float:
        return float(self._outputs["loss"])

    def parameters_sha256(self) -> str:
        """The hash of all parameters in the order of their ids."""
        digest = hashlib.sha256()
        for id, array in sorted(self.parameters().items()):
            digest.update(id.encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def _fill(
    targets: Mapping[str, NDArray[Any]], sources: Mapping[str, NDArray[Any]], what: str
) -> None:
    wrong = targets.keys() ^ sources.keys() | {
        id for id in targets.keys() & sources.keys() if targets[id].shape != sources[id].shape
    }
    if wrong:
        raise InputError(
            f"{what}: expected those of this model, got others: {', '.join(sorted(wrong)[:4])}",
            hint="use the checkpoint of this run",
        )
    for id, target in targets.items():
        target[...] = sources[id]
