"""A trained run as a model that can be asked: its weights, its tokenizer, a compiled program."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lockstep.artifacts import RunDir
from lockstep.artifacts.train_config import TrainConfig
from lockstep.artifacts.weights_manifest import WeightsManifest
from lockstep.build import inference_program, model_of
from lockstep.engine.bump import read_bump
from lockstep.engine.promotion import promoted_directory
from lockstep.engine.session import InferenceSession
from lockstep.errors import InputError, UsageError
from lockstep.tokenizers import Tokenizer

CHUNK = 64  # rows that prefill reads at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class RunModel:
    """A run's model, ready to generate."""

    config: TrainConfig
    manifest: WeightsManifest
    tokenizer: Tokenizer
    session: InferenceSession


def open_model(
    run: RunDir,
    *,
    weights: Path | None = None,
    context: int | None = None,
    threads: int | None = None,
) -> RunModel:
    """Loads the promoted weights, or those of a checkpoint, and compiles the run's model.

    Raises: InputError if weights or tokenizer are missing, damaged or of another run; UsageError
    if the context is more than the model's.
    """
    config = TrainConfig.load(run.require().path)
    directory = weights or promoted_directory(run)
    if directory is None:
        raise InputError(
            f"{run.weights}: expected promoted weights, got none",
            hint=f"promote a checkpoint with `lockstep promote {run.name}`",
        )
    model = model_of(config.template, config.family_config)
    manifest, parameters = read_bump(directory, model.shapes)
    if manifest.tokenizer_sha256 is None:
        raise UsageError(
            f"run {run.name}: expected trained weights, got the initial ones",
            hint=f"train with `lockstep train {run.name} --data FILE`, or promote a checkpoint",
        )
    tokenizer = Tokenizer.load(run.tokenizer, expect_sha256=manifest.tokenizer_sha256)
    room = config.context_len if context is None else context
    built = inference_program(
        model.family, model.config, context=room, chunk=min(CHUNK, room), threads=threads
    )
    for id, array in parameters.items():
        built.program.view(id)[...] = array
    session = InferenceSession(built.program)
    return RunModel(config=config, manifest=manifest, tokenizer=tokenizer, session=session)
