"""Files that are written whole or not at all."""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside this one to write to, which takes its place when all went well.

    Raises: OSError if the disk is full or the folder cannot be written.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:200]}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o644)  # mkstemp gave it to the owner alone
        sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Waits until a file or a folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_directory(new: Path, path: Path) -> None:
    """Puts a directory in the place of another, which goes only when the new one is there."""
    if not path.exists():
        os.rename(new, path)
        return
    with workplace(path) as holder:
        old = _replaced(holder, path)
        old.parent.mkdir()
        os.rename(path, old)
        try:
            os.rename(new, path)
        except OSError:
            os.rename(old, path)
            raise


@contextmanager
def workplace(path: Path) -> Iterator[Path]:
    """A hidden folder beside this path, of which nothing is left in the end.

    It is locked, so that the next one for this path knows whether who made it was killed.
    Raises: OSError if it cannot be made.
    """
    clear_leftovers(path)
    holder, handle = _locked_folder(path)
    try:
        yield holder
    finally:
        shutil.rmtree(holder, ignore_errors=True)
        os.close(handle)


def clear_leftovers(path: Path) -> None:
    """Removes the workplaces of processes that were killed, and puts back what they had replaced.

    Those of living processes stay, and so do all on a disk without locks.
    """
    for holder in path.parent.glob(f"{glob.escape(_prefix(path))}*"):
        with suppress(OSError):
            handle = os.open(holder, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                old = _replaced(holder, path)
                if old.exists() and not os.path.lexists(path):
                    os.rename(old, path)
                shutil.rmtree(holder, ignore_errors=True)
            finally:
                os.close(handle)


def _locked_folder(path: Path) -> tuple[Path, int]:
    """A new folder and what locks it, which is not one that was taken for left before."""
    while True:
        holder = Path(tempfile.mkdtemp(dir=path.parent, prefix=_prefix(path)))
        with suppress(FileNotFoundError):
            handle = os.open(holder, os.O_RDONLY)
            with suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX)
            if holder.exists():
                return holder, handle
            os.close(handle)


def _prefix(path: Path) -> str:
    return f".{path.name[:100]}.lockstep-"


def _replaced(holder: Path, path: Path) -> Path:
    """Where a directory lies while another one takes its place."""
    return holder / "replaced" / path.name
