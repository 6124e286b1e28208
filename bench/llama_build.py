"""An interpreter with llama.cpp, built for this machine; the wheel would leave its vectors unused.

python bench/llama_build.py    builds it once (ten minutes on two cores) and prints where it is
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

from lockstep.native.library import build_directory

VERSION = "0.3.36"
FLAGS = "-DGGML_NATIVE=ON -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAVA_BUILD=OFF"


def llama_python() -> Path:
    """The interpreter; it is built where it is missing.

    Raises: SystemExit if pip cannot.
    """
    folder = build_directory().parent / "bench" / f"llama-cpp-python-{VERSION}"
    python, done = folder / "bin" / "python", folder / "built"
    if done.exists():
        return python
    print(f"building llama.cpp into {folder}", file=sys.stderr, flush=True)
    venv.create(folder, with_pip=True, clear=True)
    packages = [f"llama-cpp-python=={VERSION}", "numpy"]
    command = [python, "-m", "pip", "install", "--no-binary", "llama-cpp-python", *packages]
    environment = {**os.environ, "CMAKE_ARGS": FLAGS}
    if subprocess.run(command, env=environment, stdout=sys.stderr).returncode:
        raise SystemExit("llama.cpp: expected pip to build it, see above")
    done.touch()
    return python


if __name__ == "__main__":
    print(llama_python())
