"""What a comparison runs: a model with its parameters, two microbatches, and one update."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lockstep.artifacts import RunDir
from lockstep.artifacts.train_config import TrainConfig
from lockstep.artifacts.train_settings import TrainSettings
from lockstep.build import (
    Built,
    Model,
    OptimizerSpec,
    lower,
    model_of,
    training_graph,
    training_program,
)
from lockstep.engine.bump import read_bump
from lockstep.engine.initialise import initialise
from lockstep.engine.promotion import promoted_directory
from lockstep.engine.trainer import IGNORED, Microbatch
from lockstep.errors import InputError, UsageError
from lockstep.ir import Array, Graph
from lockstep.proof.twin import Recipe

STEP = 3  # of the update: neither the first, whose bias corrections cancel, nor a late one
WINDOWS_PER_BATCH = 4  # that are looked at for real rows


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The two microbatches of one step differ, so that what the second one adds is seen."""

    model: Model
    optimizer: OptimizerSpec
    parameters: Mapping[str, Array]
    microbatches: tuple[Microbatch, Microbatch]
    lr: float
    max_norm: float
    weights: str  # where the parameters are from
    rows: str  # where the tokens are from

    @property
    def shape(self) -> tuple[int, int]:
        """Sequences in a microbatch, and tokens in a sequence."""
        batch, tokens = self.microbatches[0].tokens.shape
        return batch, tokens

    @property
    def n_targets(self) -> int:
        """The targets of both microbatches."""
        return sum(m.n_targets for m in self.microbatches)

    def build(self, **options: Any) -> Built:
        """The training program that keeps every value, with guards around it."""
        batch, tokens = self.shape
        return training_program(
            self.model.family,
            self.model.config,
            batch=batch,
            tokens=tokens,
            optimizer=self.optimizer,
            mode="keep",
            guards=True,
            **options,
        )

    def graph(self) -> Graph:
        """The lowered graph that the program runs."""
        family, config = self.model.family, self.model.config
        decayed = [weight.id for weight in family.weights(config) if weight.decay]
        forward = family.training_graph(config, *self.shape)
        whole = training_graph(forward, self.optimizer, decayed, guards=True)
        return lower(whole, mode="keep", guards=True)[0]

    def inputs(self, number: int) -> dict[str, Array]:
        """The inputs of forward and backward for a microbatch; the first one does not add up."""
        batch, tokens = self.shape
        microbatch = self.microbatches[number]
        return {
            "tokens": microbatch.tokens.reshape(-1),
            "targets": microbatch.targets.reshape(-1),
            "positions": np.tile(np.arange(tokens, dtype=np.int32), batch),
            "scale": np.array(1.0 / self.n_targets, np.float32),
            "accumulate": np.array(number > 0, np.int32),
        }

    def update_inputs(self) -> dict[str, Array]:
        """The inputs of the update."""
        inputs = {
            "lr": np.array(self.lr, np.float32),
            "max_norm": np.array(self.max_norm, np.float32),
        }
        if self.optimizer.kind == "adamw":
            inputs["step"] = np.array(STEP, np.int32)
        return inputs


def subject_of_run(run: RunDir, *, batch: int, tokens: int | None, seed: int) -> Subject:
    """The run's model with its newest weights, and rows of its data where it has been given any.

    Raises: InputError if a record of the run is missing or damaged; UsageError if a sequence is
    longer than the context.
    """
    config = TrainConfig.load(run.require().path)
    model = model_of(config.template, config.family_config)
    parameters, weights = _weights(run, model, config)
    wrong = sorted(id for id, array in parameters.items() if not np.isfinite(array).all())
    if wrong:
        raise InputError(
            f"{run.path}: {weights}: expected finite numbers, got others in {', '.join(wrong[:3])}",
            hint="promote an earlier checkpoint with `lockstep promote --step`",
        )
    settings = TrainSettings.find(run.path)
    longest = min(config.context_len, settings.seq_len if settings else config.context_len)
    tokens = min(32, longest) if tokens is None else tokens
    if not 1 <= tokens <= longest or batch < 1:
        raise UsageError(
            f"compare: expected at least one sequence of 1 to {longest} tokens, "
            f"got {batch} of {tokens}",
            hint="choose --batch and --tokens within the run's own lengths",
        )
    if seed < 0:
        raise UsageError(
            f"compare: expected a seed of 0 or more, got {seed}", hint="choose another --seed"
        )
    if settings is None:
        microbatches, rows = drawn_microbatches(model, batch, tokens, seed), "random tokens"
    else:
        microbatches, rows = _real_microbatches(run, batch, tokens), "rows of the training data"
    return Subject(
        model=model,
        optimizer=OptimizerSpec(
            kind=settings.optimizer if settings else "adamw", **asdict(config.adamw)
        ),
        parameters=parameters,
        microbatches=microbatches,
        lr=settings.lr if settings else 1e-3,
        max_norm=settings.max_grad_norm if settings else 1.0,
        weights=weights,
        rows=rows,
    )


def _weights(run: RunDir, model: Model, config: TrainConfig) -> tuple[Mapping[str, Array], str]:
    directory = promoted_directory(run)
    if directory is not None:
        manifest, parameters = read_bump(directory, model.shapes)
        return parameters, f"weights {manifest.weights_sha256[:12]}"
    start = {id: np.empty(shape, np.float32) for id, shape in model.shapes.items()}
    initialise(start, config.init, config.train_seed)
    return start, f"initial weights of seed {config.train_seed}"


def _real_microbatches(run: RunDir, batch: int, tokens: int) -> tuple[Microbatch, Microbatch]:
    """The windows that training sees first, each cut to its last targets."""
    steps = Recipe.of(run, 2 * batch * WINDOWS_PER_BATCH).steps
    windows = [
        (row, wanted)
        for microbatches in steps
        for m in microbatches
        for row, wanted in zip(m.tokens, m.targets, strict=True)
        if (wanted != IGNORED).any()
    ]
    chosen = [_cut(*windows[i % len(windows)], tokens) for i in range(2 * batch)]
    arrays = [np.stack(part).astype(np.int32) for part in zip(*chosen, strict=True)]
    first, second = (Microbatch(*(a[i : i + batch] for a in arrays)) for i in (0, batch))
    return first, second


def _cut(row_T: Array, wanted_T: Array, tokens: int) -> tuple[Array, Array]:
    end = max(tokens, int(np.flatnonzero(wanted_T != IGNORED)[-1]) + 1)
    return row_T[end - tokens : end], wanted_T[end - tokens : end]


def drawn_subject(
    model: Model,
    optimizer: OptimizerSpec,
    *,
    batch: int = 2,
    tokens: int = 11,
    seed: int = 0,
    max_norm: float = 0.5,
) -> Subject:
    """Parameters of a size at which every part of a model matters, and random tokens."""
    rng = np.random.default_rng(seed)
    parameters = {
        w.id: ((0 if w.decay else 1) + 0.25 * rng.standard_normal(w.shape)).astype(np.float32)
        for w in model.family.weights(model.config)
    }
    return Subject(
        model=model,
        optimizer=optimizer,
        parameters=parameters,
        microbatches=drawn_microbatches(model, batch, tokens, seed + 1),
        lr=1e-2,
        max_norm=max_norm,
        weights=f"random weights of seed {seed}",
        rows="random tokens",
    )


def drawn_microbatches(
    model: Model, batch: int, tokens: int, seed: int
) -> tuple[Microbatch, Microbatch]:
    """Random tokens; one target in five does not count, but the last of each sequence does."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, model.config.vocab, (2, 2, batch, tokens), dtype=np.int32)
    ids[:, 1, :, :-1][rng.random((2, batch, tokens - 1)) < 0.2] = IGNORED
    return Microbatch(*ids[0]), Microbatch(*ids[1])
