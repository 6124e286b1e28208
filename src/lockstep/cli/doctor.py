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
from pathlib import Path

import click

from lockstep.artifacts import lockstep_home
from lockstep.cli.verb import Outcome, Verb
from lockstep.errors import EnvironmentLacks

PROBE_SECONDS = 120  # the first build with zig makes its own C library, which takes several seconds
NEEDED_BYTES = 2 * 1024**3  # a demo run, its builds and its checkpoints, with room to spare
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
C_PROBE = "#include <math.h>\ndouble probe(double x) { return fma(x, x, 1.0); }\n"


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
    probes: Sequence[Callable[[], Finding]] = (
        _python, look_at_home, _disk, _compiler, _zig, _torch, _transformers, _chromium
    )  # fmt: skip
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


def _compiler() -> Finding:
    commands = [[name] for name in (os.environ.get("CC", ""), "cc", "gcc", "clang") if name]
    tried = [_build(command) for command in commands if shutil.which(command[0])]
    best = next((built for built in tried if built.works), None)
    if best is None and _zig().works:
        best = Built(works=True, found="none of the system's, the C compiler of ziglang serves")
    found = best.found if best else "; ".join(built.found for built in tried) or "none found"
    return Finding(
        name="compiler",
        works=best is not None,
        found=found,
        needed_for="training and inference: models are compiled to C",
        required=True,
        mend="install gcc or clang, or run `pip install ziglang`",
    )


def _zig() -> Finding:
    missing = find_spec("ziglang") is None
    built = _build([sys.executable, "-m", "ziglang", "cc"]) if not missing else None
    return Finding(
        name="ziglang",
        works=bool(built and built.works),
        found=built.found if built else "not installed",
        needed_for="machines without gcc and clang",
        mend="pip install ziglang",
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """What came of a trial build."""

    works: bool
    found: str


def _build(command: Sequence[str]) -> Built:
    """Compiles a function, loads it and calls it."""
    name = " ".join(command[-3:]) if len(command) > 1 else command[0]
    with tempfile.TemporaryDirectory() as directory:
        source, library = Path(directory, "probe.c"), Path(directory, "probe.so")
        source.write_text(C_PROBE)
        caches = {f"ZIG_{kind}_CACHE_DIR": directory for kind in ("GLOBAL", "LOCAL")}
        build = [*command, "-O2", "-shared", "-fPIC", str(source), "-o", str(library), "-lm"]
        failure = _failure(build, caches)
        if failure is None:
            probe = ctypes.CDLL(str(library)).probe
            probe.restype, probe.argtypes = ctypes.c_double, [ctypes.c_double]
            failure = None if probe(3.0) == 10.0 else "its program computes 3*3+1 wrongly"
    if failure is not None:
        return Built(works=False, found=f"{name} cannot build a program: {failure}")
    version = (_answer([*command, "--version"]) or "unknown version").splitlines()[0]
    return Built(works=True, found=f"{name}: {version}")


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
        mend=f"pip install {name}",
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


def _failure(command: Sequence[str], environment: dict[str, str]) -> str | None:
    """Why a command fails, or None if it does not."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS,
            env={**os.environ, **environment},
        )
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    return None if done.returncode == 0 else (done.stderr.strip() or "no message").splitlines()[0]


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
