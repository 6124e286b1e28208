"""The files that benchmarks run on where none are named."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from llama_build import llama_python

from lockstep.native.library import build_directory

FOLDER = build_directory().parent / "bench" / "models"


def model_files(names: Sequence[str], types: Sequence[str]) -> list[Path]:
    """A file of each model in each type; bench/models.py makes what is missing, in its own process.

    Raises: CalledProcessError if it cannot.
    """
    paths = {name: [FOLDER / f"{name}-{kind}.gguf" for kind in types] for name in names}
    missing = [name for name in names if not all(path.exists() for path in paths[name])]
    if missing:
        command = [sys.executable, str(Path(__file__).with_name("models.py")), str(FOLDER)]
        command += ["--models", ",".join(missing), "--types", ",".join(types)]
        subprocess.run([*command, "--llama-python", str(llama_python())], check=True)
    return [path for name in names for path in paths[name]]
