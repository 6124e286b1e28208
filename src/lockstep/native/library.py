"""Shared libraries from C text, cached by content."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

from lockstep.errors import EnvironmentLacks
from lockstep.native.compiler import Compiler, Sanitizer, cpu_identity, find_compiler

COMPILE_SECONDS = 600  # zig has been seen to spin for ever; a model of 24 layers takes seconds
SHOWN_LINES = 8  # of a compiler's complaint


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

    Raises: EnvironmentLacks without a compiler or a writable cache, or if the compiler complains.
    """
    compiler, directory = build_tools(compiler)
    flags = compiler.flags(sanitize)
    identity = (compiler.version, *compiler.command, *flags, cpu_identity(), source)
    key = hashlib.sha256("\0".join(identity).encode()).hexdigest()[:32]
    library, seal = directory / f"{key}.so", directory / f"{key}.sha256"
    if not _intact(library, seal):
        _build(source, compiler, flags, library, seal)
    return library


def build_tools(compiler: Compiler | None = None) -> tuple[Compiler, Path]:
    """The compiler and the cache that a build takes.

    Raises: EnvironmentLacks without a compiler or a writable cache.
    """
    return compiler or find_compiler(), _writable(build_directory())


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
        with tempfile.TemporaryDirectory(dir=library.parent, prefix="building-") as name:
            text, made = Path(name) / "model.c", Path(name) / "model.so"
            text.write_text(source)
            # zig reads the order of -l and files as ld does: libraries last.
            options = [f for f in flags if not f.startswith("-l")]
            last = [f for f in flags if f.startswith("-l")]
            command = [*compiler.command, *options, str(text), "-o", str(made), *last]
            _run(command, _environment(compiler, library.parent), name)
            digest = hashlib.sha256(made.read_bytes()).hexdigest()
            (Path(name) / "seal").write_text(digest)
            os.replace(text, library.with_suffix(".c"))
            os.replace(made, library)
            os.replace(Path(name) / "seal", seal)
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
        lines = (done.stderr or done.stdout).replace(f"{directory}/", "").splitlines()
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
                environment[name] = str(_writable(directory / "zig"))
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
