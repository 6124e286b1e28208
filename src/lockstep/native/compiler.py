"""The C compiler of this machine, and the flags that a build gets."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from lockstep.errors import EnvironmentLacks

Sanitizer = Literal["address", "undefined"]

VERSION_SECONDS = 60  # zig unpacks itself on its first run

# No contraction: fused multiply-adds are spelled out in vec.h, so that bits do not depend on the
# compiler's mood. errno of math functions is never read, and not setting it changes no result.
FLAGS = (
    "-std=gnu11",
    "-O3",
    "-march=native",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-Wall",
    "-Wextra",
    "-fPIC",
    "-shared",
    "-pthread",
)
# Checks of optimised code take long to compile, and no access may be optimised away.
SANITIZER_FLAGS = ("-O0", "-g1", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all")


@dataclass(frozen=True, slots=True)
class Compiler:
    """A command that compiles C, what it says its version is, and flags that come after ours."""

    command: tuple[str, ...]
    version: str
    extra: tuple[str, ...] = ()

    @property
    def is_zig(self) -> bool:
        """Whether this is the compiler of the `ziglang` wheel."""
        return "ziglang" in self.command

    def flags(self, sanitize: tuple[Sanitizer, ...] = ()) -> tuple[str, ...]:
        """All flags of a build but the names of the files."""
        if sanitize:
            checks = f"-fsanitize={','.join(sanitize)}"
            return (*FLAGS, *SANITIZER_FLAGS, checks, *self.extra, "-lm")
        plain = ("-fno-sanitize=undefined",) if self.is_zig else ()
        return (*FLAGS, *plain, *self.extra, "-lm")


def find_compiler() -> Compiler:
    """The first that answers: $CC, cc, gcc, clang, the one in the `ziglang` wheel.

    Raises: EnvironmentLacks if there is none, or if $CC is set and does not answer.
    """
    named = shlex.split(os.environ.get("CC", ""))
    if named:
        version = _version(tuple(named), os.environ.get("PATH", ""))
        if version is None:
            raise EnvironmentLacks(
                f"C compiler: expected $CC to be one, got {shlex.join(named)!r} that does not run",
                hint="unset CC, or set it to the command of a C compiler",
            )
        return Compiler(tuple(named), version)
    candidates = [(name,) for name in ("cc", "gcc", "clang")]
    zig = [(sys.executable, "-m", "ziglang", "cc")] if find_spec("ziglang") else []
    for command in (*candidates, *zig):
        version = _version(command, os.environ.get("PATH", ""))
        if version is not None:
            return Compiler(command, version)
    raise EnvironmentLacks(
        "C compiler: expected cc, gcc, clang or the ziglang package, got none of them",
        hint="install gcc or clang, or run `pip install ziglang`",
    )


@lru_cache(maxsize=32)
def _version(command: tuple[str, ...], path: str) -> str | None:
    """What the command answers to --version; `path` is the PATH that the answer was found with."""
    if shutil.which(command[0], path=path) is None:
        return None
    try:
        done = subprocess.run(
            [*command, "--version"], capture_output=True, text=True, timeout=VERSION_SECONDS
        )
    except (OSError, subprocess.SubprocessError):
        return None
    lines = done.stdout.strip().splitlines()
    return lines[0] if done.returncode == 0 and lines else None


@lru_cache(maxsize=1)
def cpu_identity() -> str:
    """What -march=native depends on: the processor's model and its features."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("model name", "flags", "Features", "CPU part")
    lines = text.split("\n\n")[0].splitlines()
    return "\n".join(line for line in lines if line.startswith(wanted)) + platform.machine()


@lru_cache(maxsize=1)
def cpu_features() -> frozenset[str]:
    """What the processor can do, in the words of /proc/cpuinfo; empty where that is not there."""
    for line in cpu_identity().splitlines():
        name, _, words = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(words.split())
    return frozenset()


def sanitizer_environment(compiler: Compiler) -> dict[str, str]:
    """What the environment of a process needs that loads an address-sanitized build.

    Raises: EnvironmentLacks if this compiler has no runtime of the sanitizer to load first.
    """
    names = ("libasan.so", "libclang_rt.asan-x86_64.so", "libclang_rt.asan-aarch64.so")
    for name in names if not compiler.is_zig else ():
        command = [*compiler.command, f"-print-file-name={name}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=VERSION_SECONDS)
        path = Path(done.stdout.strip())
        if path.is_absolute() and path.exists():
            options = "detect_leaks=0:abort_on_error=0:exitcode=99"  # Python itself never frees all
            return {"LD_PRELOAD": str(path.resolve()), "ASAN_OPTIONS": options}
    raise EnvironmentLacks(
        f"sanitizers: expected a runtime library of {compiler.version}, got none",
        hint="install gcc",
    )
