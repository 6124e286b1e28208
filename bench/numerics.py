"""How far engines are from transformers on the same files, in one table.

python bench/numerics.py FILE.gguf ... [--hf DIR] [--llama-python PATH]

The reference is that of bench/reference.py: at least 128 positions, and beyond the window where
attention is local. Each engine evaluates them at once, and then one token at a time.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from llama_build import llama_python
from process import Worker
from reference import distance, folder_of, reference_logits

POSITIONS = 128
SCRIPTS = {"llama.cpp": "worker_llama.py", "lockstep": "worker_inference.py"}


def engine_logits(worker: Worker, n: int, cut: int, directory: Path) -> np.ndarray:
    """The logits of an engine whose calls take `cut` tokens.

    Raises: SystemExit if it fails.
    """
    target = directory / "logits.npy"
    worker.ask({"logits": n, "cut": cut, "to": str(target)})
    if worker.problem:
        raise SystemExit(f"{worker.name}: {worker.problem}")
    found: np.ndarray = np.load(target)
    return found


def cache_of(file: Path) -> str:
    """What keys and values are kept as: a float32 file is not to lose in its cache."""
    return "f32" if file.stem.endswith("F32") else "f16"


def rows(file: Path, options: argparse.Namespace, directory: Path) -> list[str]:
    """The lines of one file."""
    wanted = reference_logits(file, options.hf or folder_of(file), options.positions, directory)
    n = len(wanted)
    lines = []
    for name in options.engines.split(","):
        python = options.llama_python if name == "llama.cpp" else sys.executable
        common = (str(file), str(n), str(options.threads), cache_of(file), "every")
        worker = Worker(name, str(python), SCRIPTS[name], *common)
        try:
            for label, cut in (("at once", n), ("one by one", 1)):
                d = distance(engine_logits(worker, n, cut, directory), wanted)
                flips = f"{d.flips} ({d.margin:.1e})" if d.flips else "0"
                lines.append(
                    f"| {file.stem} | {name} | {label} | {n} | {d.relative:.2e} "
                    f"| {1 - d.least_cosine:.1e} | {flips} |"
                )
        finally:
            worker.close()
    return lines


def main() -> None:
    """Prints the table, a file at a time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--hf", type=Path, help="directory of the model (default: NAME-hf beside)")
    parser.add_argument("--positions", type=int, default=POSITIONS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--engines", default="llama.cpp,lockstep")
    parser.add_argument("--llama-python", type=Path, help="has llama-cpp-python (default: built)")
    options = parser.parse_args()
    if "llama.cpp" in options.engines and not options.llama_python:
        options.llama_python = llama_python()
    print("| file | engine | evaluated | positions | relative error | 1 - least cosine | flips |")
    print("|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        for file in options.files:
            for line in rows(file, options, Path(directory)):
                print(line, flush=True)


if __name__ == "__main__":
    main()
