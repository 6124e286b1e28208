"""`lockstep doctor`: what works on this machine, what does not, and the command that mends it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import click

from lockstep.cli.verb import Outcome, Verb
from lockstep.errors import EnvironmentLacks

PROBE_SECONDS = 120  # the first build with zig makes its own C library, which takes several seconds
NEEDED_BYTES = 2 * 1024**3  # a demo run, its builds and its checkpoints, with room to spare
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PROBE_SOURCE = "#include <math.h>\ndouble probe(double x) { return fma(x, x, 1.0); }\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at: `found` says what is there, `mend` the command if it is not."""

    name: str
    works: bool
    required: bool
    found: str
    mend: str | None = None


def findings() -> list[Finding]:
    """Everything that the doctor looks at, required things first."""
    probes: tuple[Callable[[], Finding], ...] = (
        _python, _home, _disk, _compiler, _zig, _torch, _transformers, _chromium,
    )  # fmt: skip
    return [probe() for probe in probes]


def _python() -> Finding:
    mend = None if sys.version_info >= (3, 11) else "install Python 3.11 or newer"
    found = f"Python {platform.python_version()}, {os.cpu_count()} cores, {platform.machine()}"
    return Finding(name="python", works=mend is None, required=True, found=found, mend=mend)
