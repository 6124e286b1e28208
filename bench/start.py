"""From the command to the first token: the second start on a file, beside llama.cpp.

python bench/start.py [FILE.gguf ...] [--rounds 5] [--threads 2] [--llama-python PATH]

A start is a whole process, from the interpreter to its end, that answers one prompt with one token.
In each round ours, llama.cpp's (through its Python package) and a plain read of the file into fresh
memory take turns. Files are in the page cache, and ours was started once before: the program is
compiled and the weights are packed.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from inference import NAMES
from llama_build import llama_python
from model_files import model_files

TYPES = ("Q8_0", "Q4_K_M")
MOST_SECONDS = 1.0  # asked of a second start, beyond the read of the weights
LLAMA = """
import sys
from llama_cpp import Llama
model = Llama(sys.argv[1], n_ctx=512, n_threads=int(sys.argv[2]), verbose=False)
print(model("Hello", max_tokens=1)["choices"][0]["text"])
"""


def seconds(command: list[str]) -> float:
    """How long a process takes.

    Raises: SystemExit with what it said if it fails.
    """
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(
            f"{done.stderr.strip()}\n{command[0]}: expected exit code 0, got {done.returncode}"
        )
    return time.perf_counter() - start


def read_seconds(file: Path) -> float:
    """How long the plain read takes."""
    start = time.perf_counter()
    np.fromfile(file, np.uint8)
    return time.perf_counter() - start


def line(file: Path, rounds: int, threads: int, llama: Path) -> str:
    """A row of the table."""
    ours = [sys.executable, "-m", "lockstep.cli.main", "run", str(file)]
    ours += ["-p", "Hello", "-n", "1", "--threads", str(threads)]
    theirs = [str(llama), "-c", LLAMA, str(file), str(threads)]
    first = seconds(ours)
    found = [(seconds(ours), seconds(theirs), read_seconds(file)) for _ in range(rounds)]
    beyond = [own - read for own, _, read in found]
    cells = [
        f"{first:.1f}",
        *(f"{statistics.median(column):.2f}" for column in zip(*found, strict=True)),
        f"**{statistics.median(beyond):.2f}** ({min(beyond):.2f} to {max(beyond):.2f})",
        "met" if statistics.median(beyond) <= MOST_SECONDS else "missed",
    ]
    return f"| {file.stem} | {' | '.join(cells)} |"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("files", type=Path, nargs="*")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--llama-python", type=Path, help="has llama-cpp-python (default: built)")
    options = parser.parse_args()
    llama = options.llama_python or llama_python()
    print("| file | this start, s | second start, s | llama.cpp, s | read, s | second start beyond "
          f"the read, s (min to max) | at most {MOST_SECONDS:.0f} |\n|{'---|' * 7}")  # fmt: skip
    for file in options.files or model_files(NAMES, TYPES):
        print(line(file, options.rounds, options.threads, llama), flush=True)


if __name__ == "__main__":
    main()
