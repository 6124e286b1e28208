"""Files and directories that are there whole or not at all, also after a crash of the machine."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lockstep.artifacts import make_directory
from lockstep.artifacts.files import explained, sync


@dataclass(frozen=True, slots=True)
class Written:
    """What was written: the SHA-256 in hexadecimal, and how many bytes."""

    sha256: str
    n_bytes: int


def write_synced(path: Path, chunks: Iterable[bytes | memoryview]) -> Written:
    """Writes the chunks one after another and waits until the disk has them.

    Raises: EnvironmentLacks if the disk refuses.
    """
    digest, n_bytes = hashlib.sha256(), 0
    with explained(path), path.open("wb") as file:
        for chunk in chunks:
            digest.update(chunk)
            n_bytes += len(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    return Written(digest.hexdigest(), n_bytes)


@contextmanager
def new_directory(final: Path) -> Iterator[Path]:
    """A directory to fill; it takes its name by one rename when the block ends without an error.

    What stood under that name before is removed. A crash leaves at most a directory whose name
    starts with a dot, which `remove_leftovers` finds.

    Raises: EnvironmentLacks if the disk refuses.
    """
    make_directory(final.parent)
    temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    with explained(final):
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir()
            yield temporary
            sync(temporary)
            # Two renames and nothing between them, so that the name is hardly ever without files.
            dead = _put_aside(final)
            temporary.rename(final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync(final.parent)
    if dead is not None:
        shutil.rmtree(dead, ignore_errors=True)


def remove_directory(path: Path) -> None:
    """Takes a directory's name away by one rename, then removes what it held."""
    dead = _put_aside(path)
    if dead is not None:
        shutil.rmtree(dead, ignore_errors=True)


def _put_aside(path: Path) -> Path | None:
    """Renames a directory, if there is one, to a name that `remove_leftovers` finds."""
    if not path.is_dir():
        return None
    dead = path.with_name(f".{path.name}.{os.getpid()}.dead")
    shutil.rmtree(dead, ignore_errors=True)  # of a process that had this number before
    return path.rename(dead)


def remove_leftovers(parent: Path) -> None:
    """Removes what a crash left of `new_directory`, `remove_directory` and `point`."""
    for path in parent.glob(".*"):
        if path.suffix == ".link" and path.is_symlink():
            path.unlink(missing_ok=True)
        elif path.suffix in (".tmp", ".dead") and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)


def point(link: Path, target: str) -> None:
    """Makes `link` a symbolic link to `target`, by one rename.

    A crash leaves at most a link whose name starts with a dot, which `remove_leftovers` finds.

    Raises: EnvironmentLacks if the disk refuses.
    """
    temporary = link.with_name(f".{link.name}.{os.getpid()}.link")
    with explained(link):
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target)
        temporary.replace(link)
        sync(link.parent)
