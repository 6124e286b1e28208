"""The regimen's stages that the GO reads, on the run's own model, data and schedule."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping

import numpy as np

from lockstep.artifacts import Check, RunDir, Scalar, all_pass, content_hash, utc_now
from lockstep.artifacts.metrics import read_metrics
from lockstep.artifacts.replay_accum import ReplayAccumulation
from lockstep.artifacts.replay_determinism import ReplayDeterminism
from lockstep.artifacts.stage_evidence import Digests, Evidence
from lockstep.artifacts.train_config import TrainConfig
from lockstep.artifacts.train_settings import TrainSettings
from lockstep.engine.trainer import Microbatch
from lockstep.native import usable_threads
from lockstep.proof.replay import (
    NO_TENSORS,
    Snapshot,
    accumulate,
    digests,
    replay,
    start_session,
    update,
)
from lockstep.proof.twin import Recipe

ACCUMULATION = 8  # the runbook's, for stage F1
SNAPSHOT_AFTER = 3  # microbatches of the second step


def evidence(
    run: RunDir, stage: str, config: Mapping[str, Scalar], checks: tuple[Check, ...]
) -> Evidence:
    """What every stage writes: on which machine and which inputs it ran, and what it found."""
    inputs = (TrainConfig.file, TrainSettings.file, "tokenizer.json", "dataset/train.txt")
    return Evidence(
        stage=stage,
        generated_at=utc_now(),
        passed=all_pass(checks),
        run_dir=str(run.path),
        command=f"lockstep parity regimen {run.name}",
        host={"machine": platform.machine(), "cpus": len(os.sched_getaffinity(0))},
        inputs={name: content_hash(run.path / name) for name in inputs},
        config=dict(config),
        checks=checks,
    )


def replay_determinism(run: RunDir, n_steps: int) -> ReplayDeterminism:
    """E1: the first steps of this run twice, with other numbers of threads, and as recorded."""
    recipe = Recipe.of(run, n_steps)
    threads = (1, max(2, usable_threads()))
    first, second = (replay(recipe, threads=n) for n in threads)
    recorded = {row.step: row.loss for row in read_metrics(run.metrics)}
    n = len(recipe.steps)
    again = sum(recorded.get(step) == loss for step, loss in first.losses)
    checks = (
        *same_bits("replay", f"{threads[0]} and {threads[1]} threads", recipe, first.digests,
                   second.digests, n),
        Check.measured(
            id="replay_recorded", name="replay: recorded losses back to the bit",
            against="metrics.jsonl of the run", compared=n, unit="steps",
            figure=float(again), relation="==", bound=float(n),
        ),
    )  # fmt: skip
    return ReplayDeterminism(
        evidence=evidence(run, "E1", {"steps": n, "threads": str(threads)}, checks),
        steps=n,
        first=first.digests,
        second=second.digests,
    )


def replay_accumulation(run: RunDir) -> ReplayAccumulation:
    """F1: a snapshot in the middle of an accumulation, carried into a fresh program.

    Two updates, each over several microbatches of this run's data. The straight side never stops;
    the other leaves its program in the middle of the second update.
    """
    recipe = Recipe.of(run, 2 * ACCUMULATION)
    flat = [microbatch for step in recipe.steps for microbatch in step]
    flat = (flat * (2 * ACCUMULATION))[: 2 * ACCUMULATION]
    halves = (flat[:ACCUMULATION], flat[ACCUMULATION:])
    straight, straight_losses = _two_updates(recipe, halves, stop=False)
    replayed, replayed_losses = _two_updates(recipe, halves, stop=True)
    gap = max(abs(a - b) for a, b in zip(straight_losses, replayed_losses, strict=True))
    checks = (
        *same_bits("accumulation", "straight and resumed", recipe, straight, replayed, len(flat)),
        Check.measured(
            id="accumulation_loss", name="accumulation: largest loss difference",
            against="the straight run", compared=len(straight_losses), unit="updates",
            figure=gap, relation="==", bound=0.0,
        ),
    )  # fmt: skip
    config = {"grad_accum": ACCUMULATION, "snapshot_after": SNAPSHOT_AFTER}
    return ReplayAccumulation(
        evidence=evidence(run, "F1", config, checks),
        steps=2,
        grad_accum=ACCUMULATION,
        snapshot_step=2,
        snapshot_micro_step=SNAPSHOT_AFTER,
        straight=straight,
        replayed=replayed,
    )


def _two_updates(
    recipe: Recipe, halves: tuple[list[Microbatch], list[Microbatch]], *, stop: bool
) -> tuple[Digests, list[float]]:
    """Two accumulated updates; with `stop`, the second goes on in a program of its own."""
    threads = recipe.settings.threads
    session = start_session(recipe, threads=threads)
    losses = []
    for step, microbatches in enumerate(halves, 1):
        n_targets = sum(microbatch.n_targets for microbatch in microbatches)
        cut = SNAPSHOT_AFTER if stop and step == 2 else 0
        total = accumulate(session.program, microbatches[:cut], first=0, n_targets=n_targets)
        if cut:
            snapshot = Snapshot.of(session.program)
            session = start_session(recipe, threads=threads)
            _spoil(session.gradients())
            snapshot.restore(session.program)
        total += accumulate(session.program, microbatches[cut:], first=cut, n_targets=n_targets)
        update(session.program, step, lr=recipe.lrs[0], max_norm=recipe.settings.max_grad_norm)
        losses.append(total / n_targets)
    return digests(session, losses), losses


def _spoil(arrays: Mapping[str, np.ndarray]) -> None:
    """Fills memory that a restore must bring back, so that a forgotten array cannot pass."""
    for array in arrays.values():
        array[...] = np.nan


def same_bits(
    prefix: str, against: str, recipe: Recipe, a: Digests, b: Digests, compared: int
) -> tuple[Check, ...]:
    """One check for each of the hashes; the figure counts those that differ."""
    pairs = [("losses", a.losses, b.losses), ("params", a.params, b.params)]
    if recipe.settings.optimizer != "sgd":  # which has no moments
        pairs.append(("moments", a.moments, b.moments))
    return tuple(
        Check.measured(
            id=f"{prefix}_{name}", name=f"{prefix}: hashes of {name} that differ", against=against,
            compared=0 if NO_TENSORS in (x, y) else compared, unit="steps",
            figure=float(x != y), relation="==", bound=0.0,
        )
        for name, x, y in pairs
    )  # fmt: skip
