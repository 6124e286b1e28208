"""Shared libraries from C text, cached by content."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from lockstep.errors import EnvironmentLacks
from lockstep.native.compiler import Compiler, Sanitizer, cpu_identity, find_compiler

COMPILE_SECONDS = 600  # zig has been seen to spin for ever; a model of 24 layers takes seconds
SHOWN_LINES = 8  # of a compiler's complaint
# How gcc, clang, zig and their linkers say that a disk, a quota or a limit of files is full.
_NO_ROOM = re.compile(
    "no ?space ?left|disk quota exceeded|file too large|file size limit exceeded", re.IGNORECASE
)
# Of all builds and of what zig keeps; those that were not used for longest go first.
MOST_BYTES = 1 << 30
_IN_USE_S = 600.0  # after that a build has been loaded by whoever asked for it
_LEFT_S = 24 * 3600.0  # no build takes so long: its process was killed
# Of one build; without the first it is as if it were not there.
_SUFFIXES = (".sha256", ".so", ".c")
_BUILDING = "building-"
_ZIG_SHARE = 4  # the part of MOST_BYTES, as a divisor, beyond which the cache of zig is emptied


def build_directory() -> Path:
    """Where builds are cached: $LOCKSTEP_HOME/build, or ~/.cache/lockstep/build.

    Raises: EnvironmentLacks if the user has no home directory.
    """
    home = os.environ.get("LOCKSTEP_HOME") or "~/.cache/lockstep"
    try:
        return Path(home).expanduser() / "build"
    except RuntimeError as error:
        raise EnvironmentLacks(
            f"{home:.120}: expected a home directory, got none for this user",
            hint="set LOCKSTEP_HOME to a directory that you can write",
        ) from error


def compile_library(
    source: str, *, sanitize: tuple[Sanitizer, ...] = (), compiler: Compiler | None = None
) -> Path:
    """The shared library of a C text, from the cache where it has been built before.

    Raises: EnvironmentLacks without a compiler, if the compiler complains, or if what is not built
    yet would go to a cache that cannot be written.
    """
    compiler = compiler or find_compiler()
    flags = compiler.flags(sanitize)
    library, seal = _files(source, compiler, flags)
    if not _found(library, seal):
        _writable(library.parent)
        _build(source, compiler, flags, library, seal)
    return library


def expect_library(source: Callable[[], str]) -> None:
    """Insists that `compile_library` would begin: a compiler, and a cache to write or to read from.

    Raises: EnvironmentLacks.
    """
    compiler = find_compiler()
    try:
        _writable(build_directory())
    except EnvironmentLacks:
        if not _found(*_files(source(), compiler, compiler.flags())):
            raise


def _files(source: str, compiler: Compiler, flags: tuple[str, ...]) -> tuple[Path, Path]:
    """Where the library of a C text is kept, and its seal."""
    identity = (compiler.version, *compiler.command, *flags, cpu_identity(), source)
    key = hashlib.sha256("\0".join(identity).encode()).hexdigest()[:32]
    directory = build_directory()
    return directory / f"{key}.so", directory / f"{key}.sha256"


def _found(library: Path, seal: Path) -> bool:
    """Whether it has been built; from now on it stays for as long as it takes to load it.

    A cache that cannot be written has what it has: nobody deletes it, and nothing is noted.
    """
    try:
        with _locked(library.parent, fcntl.LOCK_SH):
            if not _intact(library, seal):
                return False
            with suppress(OSError):
                os.utime(seal)  # what was used last is kept longest
            return True
    except OSError:  # no directory yet, or none that can be read
        return False


@contextmanager
def _locked(directory: Path, kind: int) -> Iterator[None]:
    """Keeps a process from deleting what another is about to use, where the disk knows locks."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(handle, kind)
        yield
    finally:
        os.close(handle)


def _trim(directory: Path) -> None:
    """Deletes the builds that were not used for longest, beyond MOST_BYTES of them.

    What a process left that was killed while it built goes as well.
    """
    now, n_bytes = time.time(), _zig_bytes(_zig_cache(directory))
    builds: dict[str, list[os.stat_result]] = defaultdict(list)
    for path in directory.iterdir():
        with suppress(FileNotFoundError):
            if path.suffix in _SUFFIXES:
                builds[path.stem].append(path.stat())
            elif path.name.startswith(_BUILDING) and path.stat().st_mtime < now - _LEFT_S:
                shutil.rmtree(path, ignore_errors=True)
    used = {key: max(found.st_mtime for found in files) for key, files in builds.items()}
    for key in sorted(builds, key=used.__getitem__, reverse=True):
        n_bytes += sum(found.st_size for found in builds[key])
        if n_bytes > MOST_BYTES and used[key] < now - _IN_USE_S:
            for suffix in _SUFFIXES:
                with suppress(OSError):  # not there, or another user's
                    (directory / f"{key}{suffix}").unlink()


def _zig_cache(directory: Path) -> Path:
    return directory / "zig"


def _zig_bytes(cache: Path) -> int:
    """What zig keeps for itself; where that is more than its share, all of it goes.

    Its parts refer to each other. While a build reads them they stay.
    """
    n_bytes = 0
    for path in cache.rglob("*"):
        with suppress(OSError):
            n_bytes += path.lstat().st_size if path.is_file() else 0
    if n_bytes * _ZIG_SHARE <= MOST_BYTES:
        return n_bytes
    with suppress(OSError):
        handle = os.open(cache, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for path in cache.iterdir():
                shutil.rmtree(path, ignore_errors=True)
            return 0
        finally:
            os.close(handle)
    return n_bytes


def _intact(library: Path, seal: Path) -> bool:
    """Whether the cached library is the one that was built: a torn write or a bad disk is not."""
    try:
        return seal.read_text() == hashlib.sha256(library.read_bytes()).hexdigest()
    except (OSError, UnicodeDecodeError):
        return False


def _build(
    source: str, compiler: Compiler, flags: tuple[str, ...], library: Path, seal: Path
) -> None:
    try:
        with tempfile.TemporaryDirectory(dir=library.parent, prefix=_BUILDING) as name:
            text, made = Path(name) / "model.c", Path(name) / "model.so"
            text.write_text(source)
            # zig reads the order of -l and files as ld does: libraries last.
            options = [f for f in flags if not f.startswith("-l")]
            last = [f for f in flags if f.startswith("-l")]
            command = [*compiler.command, *options, str(text), "-o", str(made), *last]
            environment = _environment(compiler, library.parent)
            cache = _zig_cache(library.parent)
            with _locked(cache, fcntl.LOCK_SH) if cache.is_dir() else nullcontext():
                _run(command, environment, name)
            digest = hashlib.sha256(made.read_bytes()).hexdigest()
            (Path(name) / "seal").write_text(digest)
            with _locked(library.parent, fcntl.LOCK_EX):
                os.replace(text, library.with_suffix(".c"))
                os.replace(made, library)
                os.replace(Path(name) / "seal", seal)
                _trim(library.parent)
    except OSError as error:
        raise _cannot_write(library.parent, error) from error


def _run(command: list[str], environment: dict[str, str], directory: str) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=COMPILE_SECONDS, env=environment
        )
    except subprocess.TimeoutExpired:
        raise EnvironmentLacks(
            f"C compiler {command[0]}: expected an end within {COMPILE_SECONDS} s, got none",
            hint="try another compiler: set CC to its command",
        ) from None
    if done.returncode != 0:
        said = done.stderr or done.stdout
        if full := _NO_ROOM.search(said):
            raise EnvironmentLacks(
                f"C compiler {command[0]}: expected room for a library, got: {full[0].lower()}",
                hint="free some space where LOCKSTEP_HOME and TMPDIR are, or set them elsewhere",
            )
        lines = said.replace(f"{directory}/", "").splitlines()
        marked = [i for i, line in enumerate(lines) if "error" in line]
        first = marked[0] if marked else 0
        shown = "\n  ".join(lines[first : first + SHOWN_LINES])
        raise EnvironmentLacks(
            f"C compiler {command[0]}: expected a library, got exit code {done.returncode}\n"
            f"  {shown}",
            hint="try another compiler: set CC to its command",
        )


def _environment(compiler: Compiler, directory: Path) -> dict[str, str]:
    environment = {**os.environ, "LC_ALL": "C"}
    environment.pop("LD_PRELOAD", None)  # the compiler need not run under a sanitizer
    if compiler.is_zig:  # with a cache that it cannot write, zig spins for ever
        for kind in ("GLOBAL", "LOCAL"):
            name = f"ZIG_{kind}_CACHE_DIR"
            if not environment.get(name):
                environment[name] = str(_writable(_zig_cache(directory)))
    return environment


def _writable(directory: Path) -> Path:
    """The directory, made where it is missing, after a probe that it can be written."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(b"probe")
    except OSError as error:
        raise _cannot_write(directory, error) from error
    return directory


def _cannot_write(directory: Path, error: OSError) -> EnvironmentLacks:
    reason = (error.strerror or str(error)).lower()
    return EnvironmentLacks(
        f"build cache {directory}: expected to write there, got: {reason}",
        hint="set LOCKSTEP_HOME to a directory that you can write, with space left",
    )
