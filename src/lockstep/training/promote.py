"""`promote`: makes a checkpoint's weights those of the run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lockstep.artifacts import RunDir
from lockstep.artifacts.train_config import TrainConfig
from lockstep.artifacts.weights_manifest import WeightsManifest
from lockstep.build import model_of
from lockstep.engine import promotion
from lockstep.engine.checkpoint import (
    Skipped,
    list_checkpoints,
    load_checkpoint,
    newest_valid,
    step_directory,
)
from lockstep.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Promotion:
    """Which checkpoint was chosen, how, and which newer ones could not be."""

    selector: str
    path: Path
    manifest: WeightsManifest
    skipped: tuple[Skipped, ...]
    dry_run: bool


def promote(run: RunDir, *, step: int | None = None, dry_run: bool = False) -> Promotion:
    """Verifies a checkpoint (None: the newest valid one) and makes its weights current.

    Raises: UsageError if there is no such checkpoint; InputError if it is damaged; EnvironmentLacks
    if the disk refuses; what was current then still is.
    """
    config = TrainConfig.load(run.require().path)
    shapes = model_of(config.template, config.family_config).shapes
    steps = ", ".join(str(int(p.name[5:])) for p in list_checkpoints(run.checkpoints))
    skipped: tuple[Skipped, ...] = ()
    if step is None:
        checkpoint, skipped = newest_valid(run.checkpoints, shapes)
    elif step_directory(run.checkpoints, step).is_dir():
        checkpoint = load_checkpoint(step_directory(run.checkpoints, step), shapes)
    else:
        checkpoint = None
    if checkpoint is None:
        raise UsageError(
            f"run {run.name}: expected a checkpoint{'' if step is None else f' of step {step}'}, "
            f"got {f'those of steps {steps}' if steps else 'none'}",
            hint="choose one of these with --step" if steps else "train with `lockstep train`",
        )
    manifest = WeightsManifest.load(checkpoint.path)
    if not dry_run:
        promotion.promote(run, checkpoint.path, checkpoint.path.name)
    return Promotion(
        selector="newest valid" if step is None else f"step {step}",
        path=checkpoint.path,
        manifest=manifest,
        skipped=skipped,
        dry_run=dry_run,
    )
