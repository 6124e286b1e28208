"""The weights of a run that count: both files made current by one rename."""

from __future__ import annotations

import os
import shutil
from itertools import chain, count
from pathlib import Path

from lockstep.artifacts import RunDir
from lockstep.artifacts.files import content_hash, explained
from lockstep.artifacts.weights_manifest import WeightsManifest
from lockstep.engine.bump import BUMP_FILE
from lockstep.engine.durable import new_directory, point, remove_leftovers
from lockstep.errors import InputError

PROMOTED = "promoted"
CURRENT = "current"
FILES = (BUMP_FILE, WeightsManifest.file)


def promote(run: RunDir, source: Path, name: str) -> WeightsManifest:
    """Copies the weights and the manifest of a directory into the run and makes them current.

    `weights.bump` and `weights_manifest.json` of the run are links into the directory that the one
    link `promoted/current` names, so at every moment they lead to the files of one promotion.

    Raises: InputError if the weights are not those of their manifest; EnvironmentLacks if the disk
    refuses; what was current then still is.
    """
    manifest = WeightsManifest.load(source)
    root = run.path / PROMOTED
    for parent in (root, run.path):
        remove_leftovers(parent)
    final = _free_name(root, f"{name}-{manifest.weights_sha256[:12]}")
    with new_directory(final) as directory:
        for file in FILES:
            _copy_synced(source / file, directory / file)
        if content_hash(directory / BUMP_FILE) != manifest.weights_sha256:
            raise InputError(
                f"{source / BUMP_FILE}: expected the bytes that its manifest describes, got others",
                hint="promote another checkpoint with --step",
            )
    before = promoted_directory(run)
    point(root / CURRENT, final.name)
    for file in FILES:
        target = f"{PROMOTED}/{CURRENT}/{file}"
        link = run.path / file
        if not (link.is_symlink() and os.readlink(link) == target):
            point(link, target)
    # The one before stays for a reader that has opened only one of its files so far.
    for path in root.iterdir():
        if path.is_dir() and not path.is_symlink() and path not in (final, before):
            shutil.rmtree(path, ignore_errors=True)
    return manifest


def _free_name(root: Path, stem: str) -> Path:
    """A directory that is not there yet: what is current is never replaced in place."""
    names = chain((stem,), (f"{stem}-{n}" for n in count(2)))
    return next(root / name for name in names if not (root / name).exists())


def promoted_directory(run: RunDir) -> Path | None:
    """The directory whose weights are current, or None."""
    link = run.path / PROMOTED / CURRENT
    return run.path / PROMOTED / os.readlink(link) if link.is_symlink() else None


def _copy_synced(source: Path, target: Path) -> None:
    with explained(target), source.open("rb") as reader, target.open("wb") as writer:
        shutil.copyfileobj(reader, writer, 1 << 20)
        writer.flush()
        os.fsync(writer.fileno())
