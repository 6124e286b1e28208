"""Checkpoints: one directory each, hashed and synced, made current by one rename."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as parse_tensors
from safetensors.numpy import save as print_tensors

from lockstep.artifacts import read_bytes
from lockstep.artifacts.checkpoint_state import CheckpointState, FileHash
from lockstep.artifacts.files import content_hash
from lockstep.engine.bump import BUMP_FILE, read_bump, write_bump
from lockstep.engine.durable import (
    new_directory,
    point,
    remove_directory,
    remove_leftovers,
    write_synced,
)
from lockstep.errors import InputError, LockstepError

Tensors = Mapping[str, NDArray[Any]]

MOMENTS_FILE = "moments.safetensors"
CURRENT = "current"
_MEND = "resume from another checkpoint, or start again with `lockstep train --force`"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that was read and verified."""

    path: Path
    state: CheckpointState
    parameters: dict[str, NDArray[Any]]
    moments: dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Skipped:
    """A checkpoint that could not be used, and why."""

    path: Path
    why: str


def step_directory(root: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return root / f"step_{step:08d}"


def list_checkpoints(root: Path) -> list[Path]:
    """The directories of all checkpoints, oldest first, whether or not they are valid."""
    found = (p for p in root.glob("step_*") if p.is_dir() and p.name[5:].isdigit())
    return sorted(found, key=lambda path: int(path.name[5:]))


def save_checkpoint(
    root: Path,
    state: CheckpointState,
    parameters: Tensors,
    moments: Tensors,
    *,
    run_id: str | None = None,
    keep_last: int = 0,
) -> Path:
    """Writes a checkpoint, makes it current, then removes all but the last `keep_last` (0: none).

    Raises: EnvironmentLacks if the disk refuses; what was current then still is.
    """
    remove_leftovers(root)
    final = step_directory(root, state.step)
    with new_directory(final) as directory:
        manifest = write_bump(
            directory,
            parameters,
            template=state.template,
            config=state.config,
            tokenizer_sha256=state.tokenizer_sha256,
            generated_at=state.created_at,
            step=state.step,
            reason=state.reason,
            run_id=run_id,
            checkpoint=final.name,
        )
        written = write_synced(directory / MOMENTS_FILE, [print_tensors(dict(moments))])
        manifest_path = directory / manifest.file
        files = {
            BUMP_FILE: FileHash(sha256=manifest.weights_sha256, n_bytes=manifest.weights_bytes),
            manifest.file: _hash(manifest_path),
            MOMENTS_FILE: FileHash(sha256=written.sha256, n_bytes=written.n_bytes),
        }
        replace(state, files=files).sealed().save(directory)
    point(root / CURRENT, final.name)
    if keep_last:
        for path in list_checkpoints(root)[:-keep_last]:
            if path != final:
                remove_directory(path)
    return final


def _hash(path: Path) -> FileHash:
    return FileHash(sha256=content_hash(path), n_bytes=path.stat().st_size)


def load_checkpoint(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Checkpoint:
    """Reads and verifies one checkpoint of a model with these parameters.

    Raises: InputError naming the file that is missing, cut short, changed or of another model.
    """
    state = CheckpointState.load(path)
    if path.name not in (CURRENT, step_directory(path.parent, state.step).name):
        raise InputError(
            f"{path}: expected the state of that step, got step {state.step}", hint=_MEND
        )
    for name, expected in state.files.items():
        file = path / Path(name).name
        if content_hash(file) != expected.sha256:
            n_bytes = file.stat().st_size
            raise InputError(
                f"{file}: expected the {expected.n_bytes} bytes that were saved, "
                f"got {n_bytes} bytes that differ",
                hint=_MEND,
            )
    _, parameters = read_bump(path, shapes)
    return Checkpoint(path, state, parameters, _read_moments(path / MOMENTS_FILE, shapes))


def _read_moments(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[Any]]:
    try:
        moments: dict[str, NDArray[Any]] = parse_tensors(read_bytes(path))
    except SafetensorError as error:
        raise InputError(f"{path}: expected moments, got: {error}", hint=_MEND) from error
    for id, array in moments.items():
        if shapes.get(id.rpartition("@")[0]) != array.shape:
            raise InputError(f"{path}: {id}: expected a moment of this model, got one of another",
                             hint=_MEND)  # fmt: skip
    return moments


def newest_valid(
    root: Path, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[Checkpoint | None, tuple[Skipped, ...]]:
    """The newest checkpoint that can be used, and the newer ones that cannot.

    Changes nothing, because a training may be saving there at this moment.

    Raises: InputError if there are checkpoints but none can be used.
    """
    skipped: list[Skipped] = []
    for path in reversed(list_checkpoints(root)):
        try:
            return load_checkpoint(path, shapes), tuple(skipped)
        except LockstepError as error:
            skipped.append(Skipped(path, error.message))
    if skipped:
        raise InputError(
            f"{root}: expected a checkpoint that can be used, got {len(skipped)} that cannot; "
            f"the newest: {skipped[0].why}",
            hint="start again with `lockstep train --force`, or restore the directory",
        )
    return None, ()
