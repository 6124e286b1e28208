"""`lockstep doctor`: what works on this machine, what does not, and the command that mends it."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from uuid import uuid4

import click

from lockstep.artifacts import lockstep_home
from lockstep.cli.verb import Outcome, Verb
from lockstep.errors import EnvironmentLacks
from lockstep.native import Compiler, compile_library, find_compiler

PROBE_SECONDS = 60  # a first import of torch, or the first answer of zig, takes several
NEEDED_BYTES = 2 * 1024**3  # a demo run, its builds and its checkpoints, with room to spare
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PIP = f"{sys.executable} -m pip"
ZIG = (sys.executable, "-m", "ziglang", "cc")
C_PROBE = """#include <math.h>
double probe(double x);
double probe(double x) { return fma(x, x, 1.0); }
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at: what there is, what needs it, and the command that mends it."""

    name: str
    works: bool
    found: str
    needed_for: str
    required: bool = False
    mend: str | None = None


def look() -> list[Finding]:
    """Everything that the doctor looks at, in the order in which a setup needs it."""
    machine = (_python, look_at_home, _disk, look_at_compiler, look_at_zig)
    probes: Sequence[Callable[[], Finding]] = (*machine, _torch, _transformers, _chromium)
    found = [probe() for probe in probes]
    return [replace(finding, mend=None) if finding.works else finding for finding in found]


def find_chromium() -> str | None:
    """The path of a Chromium on this machine."""
    return next((path for name in CHROMIUM_NAMES if (path := shutil.which(name))), None)


def _python() -> Finding:
    return Finding(
        name="python",
        works=sys.version_info >= (3, 11),
        found=f"{platform.python_version()} on {platform.machine()}, {os.cpu_count()} cores",
        needed_for="everything",
        required=True,
        mend="install Python 3.11 or newer",
    )


def look_at_home() -> Finding:
    home, found, works = lockstep_home(), "can be written", True
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home) as file:
            file.write(b"probe")
    except OSError as error:
        found, works = (error.strerror or str(error)).lower(), False
    return Finding(
        name="home",
        works=works,
        found=f"{home}: {found}",
        needed_for="runs, builds and downloads",
        required=True,
        mend="export LOCKSTEP_HOME=a directory that you can write",
    )


def _disk() -> Finding:
    place = next(p for p in (lockstep_home(), *lockstep_home().absolute().parents) if p.exists())
    free_bytes = shutil.disk_usage(place).free
    return Finding(
        name="disk",
        works=free_bytes >= NEEDED_BYTES,
        found=f"{free_bytes / 1024**3:.1f} GiB free in {place}",
        needed_for=f"a demo run ({NEEDED_BYTES / 1024**3:.0f} GiB)",
        required=True,
        mend="free some space, or point LOCKSTEP_HOME to another disk",
    )


def look_at_compiler() -> Finding:
    try:
        found, works = _build(find_compiler()), True
    except EnvironmentLacks as error:
        found, works = error.message, False
    return Finding(
        name="compiler",
        works=works,
        found=found,
        needed_for="training and inference: models are compiled to C",
        required=True,
        mend=f"apt-get install gcc, or {PIP} install ziglang",
    )


def look_at_zig() -> Finding:
    version = _answer([*ZIG, "--version"]) if find_spec("ziglang") else None
    try:
        found, works = "not installed", version is not None
        if version is not None:
            found = f"zig's {_build(Compiler(ZIG, version.splitlines()[0]))}"
    except EnvironmentLacks as error:
        found, works = error.message, False
    return Finding(
        name="ziglang",
        works=works,
        found=found,
        needed_for="machines without gcc and clang",
        mend=f"{PIP} install ziglang",
    )


def _torch() -> Finding:
    return _package("torch", "the independent training that ours is compared with (demo, go)")


def _transformers() -> Finding:
    return _package("transformers", "the independent models that ours are compared with (demo, go)")


def _chromium() -> Finding:
    path = find_chromium()
    version = _answer([path, "--version"]) if path else None
    return Finding(
        name="chromium",
        works=version is not None,
        found=f"{version} at {path}" if version else "not found",
        needed_for="the tests that open the report in a browser",
        mend="apt-get install chromium",
    )


def _build(compiler: Compiler) -> str:
    """Compiles a function as a model is compiled, calls it, and returns the compiler's version.

    Raises: EnvironmentLacks if that does not work.
    """
    library = compile_library(f"/* {uuid4()} */\n{C_PROBE}", compiler=compiler)
    try:
        probe = ctypes.CDLL(str(library)).probe
        probe.restype, probe.argtypes = ctypes.c_double, [ctypes.c_double]
        if (answer := probe(3.0)) != 10.0:
            raise EnvironmentLacks(f"{compiler.version}: expected fma(3, 3, 1) = 10, got {answer}")
    finally:
        for suffix in (".so", ".c", ".sha256"):  # each visit builds anew, and leaves nothing
            library.with_suffix(suffix).unlink(missing_ok=True)
    return compiler.version


def _package(name: str, needed_for: str) -> Finding:
    """Imports a package in a process of its own: it may be broken, and it takes seconds."""
    if find_spec(name) is None:
        version, found = None, "not installed"
    else:
        version = _answer([sys.executable, "-c", f"import {name}; print({name}.__version__)"])
        found = version or "installed, but it cannot be imported"
    return Finding(
        name=name,
        works=version is not None,
        found=found,
        needed_for=needed_for,
        mend=f"{PIP} install {name}",
    )


def _answer(command: Sequence[str]) -> str | None:
    """What a command prints, or None if it fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PROBE_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def describe(found: Sequence[Finding]) -> str:
    """The findings as a table, with the command under each thing that does not work."""
    lines = []
    for finding in found:
        mark, colour = ("ok", "green") if finding.works else ("missing", "yellow")
        if finding.required and not finding.works:
            mark, colour = "MISSING", "red"
        lines.append(f"{click.style(f'{mark:<8}', fg=colour)} {finding.name:<13} {finding.found}")
        if not finding.works:
            lines.append(f"{'':<22} needed for {finding.needed_for}")
            lines.append(f"{'':<22} mend it: {finding.mend}")
    return "\n".join(lines)


@click.command(cls=Verb)
def command() -> Outcome:
    """Say what works here, what does not, and the command that mends it.

    Exit code 3 if something is missing that everything needs; what only some verbs need is listed,
    and does not change the exit code.
    """
    found = look()
    healthy = all(finding.works for finding in found if finding.required)
    document = {"works": healthy, "findings": [asdict(finding) for finding in found]}
    return Outcome(document, describe(found), 0 if healthy else EnvironmentLacks.exit_code)
