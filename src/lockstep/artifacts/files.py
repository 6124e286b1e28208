"""Writing files so that a reader sees the old bytes or the new ones, never a part."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lockstep.errors import EnvironmentLacks, InputError, UsageError

# What the person at the terminal can do about each refusal of the operating system.
HINTS = {
    errno.ENOSPC: "free some space on that disk, then run the same command again",
    errno.EDQUOT: "free some space under your quota, then run the same command again",
    errno.EROFS: "choose a directory on a writable disk, for example through LOCKSTEP_HOME",
    errno.EACCES: "make the directory writable, or choose another, for example by LOCKSTEP_HOME",
    errno.EPERM: "make the directory writable, or choose another, for example by LOCKSTEP_HOME",
    errno.ENOTDIR: "move the file that stands where a directory is needed",
    errno.EISDIR: "move the directory that stands where a file is needed",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "mend the symbolic links, which lead in a circle",
    errno.EIO: "check the disk, it fails to read or write",
}


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns what the disk refuses while `path` is written into an error with a hint.

    Raises: EnvironmentLacks if the disk refuses.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        hint = HINTS.get(error.errno or 0, "check the disk and the directory, then run it again")
        raise EnvironmentLacks(f"{path}: expected to write it, got: {reason}", hint=hint) from error


def make_directory(path: Path) -> Path:
    """Creates the directory and its parents where they are missing.

    Raises: EnvironmentLacks if that cannot be done.
    """
    with explained(path):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from error
    return path


def regular_or_missing(path: Path) -> None:
    """Insists that what an output would replace is a regular file, so that no device is lost.

    Raises: UsageError if something else is there.
    """
    with explained(path):
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:
            return
    # a directory is refused by the rename, and nothing of it is lost
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise UsageError(
            f"{path}: expected a regular file or none, got a device or a pipe",
            hint="name another file",
        )


def atomic_write_bytes(path: Path, data: bytes) -> Path:
    """Replaces the file by one rename of a synced temporary in the same directory.

    Raises: EnvironmentLacks if the disk refuses; the old file is then as it was. UsageError if
    the path is no regular file.
    """
    make_directory(path.parent)
    regular_or_missing(path)
    # The id of the thread is unique on the machine, so two writers never share a temporary.
    temporary = path.with_name(f".{path.name}.{threading.get_native_id()}.tmp")
    with explained(path):
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync(path.parent)
    return path


def atomic_write_text(path: Path, text: str) -> Path:
    """Like `atomic_write_bytes`, in UTF-8; what a file name holds that is no text is escaped."""
    return atomic_write_bytes(path, text.encode("utf-8", "backslashreplace"))


def sync(path: Path) -> None:
    """Makes the bytes of a file, or the names in a directory, outlast a crash of the machine."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def append_bytes(path: Path, line: bytes) -> None:
    """Appends one line that ends in a newline, and drops a torn line that a crash left before it.

    Raises: EnvironmentLacks if the disk refuses; the file is then as it was.
    """
    make_directory(path.parent)
    with explained(path), path.open("ab+", buffering=0) as file:
        whole = _length_of_whole_lines(file.fileno())
        file.truncate(whole)
        try:
            if file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except BaseException:
            file.truncate(whole)
            raise


def _length_of_whole_lines(handle: int) -> int:
    """How many leading bytes of the file end in a newline."""
    end = os.fstat(handle).st_size
    while end > 0:
        start = max(0, end - 4096)
        found = os.pread(handle, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def read_bytes(path: Path, *, hint: str = "") -> bytes:
    """The bytes of a file that must be there.

    Raises: InputError if it is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        hint = hint or "check the path, and that the step which writes this file has run"
        raise InputError(f"{path}: expected a readable file, got: {reason}", hint=hint) from error


def content_hash(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal.

    Raises: InputError if it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(
            f"{path}: expected a readable file, got: {reason}",
            hint="check the path, and that the step which writes this file has run",
        ) from error
