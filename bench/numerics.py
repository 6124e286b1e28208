"""The proof of inference: how far engines are from transformers on the same files, and a verdict.

python bench/numerics.py [FILE.gguf ...] [--hf DIR] [--llama-python PATH]

The reference is that of bench/reference.py: at least 128 positions, and beyond the window where
attention is local. Each engine evaluates them at once, and then one token at a time. Of weights
that are floats the least cosine is bounded, and how sure transformers may have been of a token that
we would not choose; of other types the error, by llama.cpp's own. It exits with 1 if one is broken.
Without files: those of bench/model_files.py.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from llama_build import llama_python
from model_files import model_files
from process import Worker
from reference import Distance, distance, folder_of, reference_logits

POSITIONS = 128
NAMES = ("qwen3-0.6b", "qwen2-0.5b", "gemma3-270m", "qwen3.5-0.8b", "llama-135m")
TYPES = ("F32", "F16", "Q8_0", "Q5_K_M", "Q4_K_M")
FLOATS = ("F32", "F16", "BF16")
LEAST_COSINE = 0.99999  # what was asked for
# What that cosine leaves of a row is an error of root(2 (1 - cosine)) of its root mean square. Two
# logits that are each five deviations off, as one in a million is, change places below this gap.
MOST_MARGIN = 2 * 5 * (2 * (1 - LEAST_COSINE)) ** 0.5
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


@dataclass(frozen=True, kw_only=True)
class Found:
    """What one engine made of one file."""

    file: str
    engine: str
    evaluated: str
    distance: Distance

    @property
    def line(self) -> str:
        """As a line of the table."""
        d = self.distance
        flips = f"{d.flips} ({d.margin:.1e})" if d.flips else "0"
        return (
            f"| {self.file} | {self.engine} | {self.evaluated} | {d.positions} "
            f"| {d.relative:.2e} | {1 - d.least_cosine:.1e} | {flips} |"
        )


def measure(file: Path, options: argparse.Namespace, directory: Path) -> Iterator[Found]:
    """Both engines on one file."""
    wanted = reference_logits(file, options.hf or folder_of(file), options.positions, directory)
    n = len(wanted)
    for name in options.engines.split(","):
        python = options.llama_python if name == "llama.cpp" else sys.executable
        common = (str(file), str(n), str(options.threads), cache_of(file), "every")
        worker = Worker(name, str(python), SCRIPTS[name], *common)
        try:
            for evaluated, cut in (("at once", n), ("one by one", 1)):
                logits = engine_logits(worker, n, cut, directory)
                yield Found(file=file.stem, engine=name, evaluated=evaluated,
                            distance=distance(logits, wanted))  # fmt: skip
        finally:
            worker.close()


def broken(found: Sequence[Found]) -> list[str]:
    """The bounds that our engine does not keep, in words."""
    peers = {(f.file, f.evaluated): f.distance for f in found if f.engine == "llama.cpp"}
    ours = [f for f in found if f.engine == "lockstep"]
    lines = [] if ours else ["expected figures of lockstep, got none: nothing was compared"]
    for own in ours:
        where, d = f"{own.file}, {own.evaluated}", own.distance
        peer = peers.get((own.file, own.evaluated))
        if own.file.rpartition("-")[2] in FLOATS:
            if not d.least_cosine >= LEAST_COSINE:
                lines.append(f"{where}: expected a cosine of {LEAST_COSINE}, got {d.least_cosine}")
            if not d.margin <= MOST_MARGIN:
                lines.append(f"{where}: expected flips below {MOST_MARGIN:.1e}, got {d.margin:.1e}")
        elif peer is None:
            lines.append(f"{where}: expected llama.cpp's error beside ours, it was not measured")
        elif not d.relative <= peer.relative:
            lines.append(
                f"{where}: expected at most llama.cpp's {peer.relative:.2e}, got {d.relative:.2e}"
            )
    return lines


def main() -> None:
    """Prints the table, a file at a time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("files", type=Path, nargs="*")
    parser.add_argument("--hf", type=Path, help="directory of the model (default: NAME-hf beside)")
    parser.add_argument("--positions", type=int, default=POSITIONS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--engines", default=",".join(SCRIPTS))
    parser.add_argument("--llama-python", type=Path, help="has llama-cpp-python (default: built)")
    options = parser.parse_args()
    if unknown := set(options.engines.split(",")) - SCRIPTS.keys():
        parser.error(f"--engines: expected some of {', '.join(SCRIPTS)}, got {min(unknown)!r}")
    if "llama.cpp" in options.engines and not options.llama_python:
        options.llama_python = llama_python()
    print("| file | engine | evaluated | positions | relative error | 1 - least cosine | flips |")
    print("|---|---|---|---|---|---|---|", flush=True)
    found: list[Found] = []
    with tempfile.TemporaryDirectory() as directory:
        for file in options.files or model_files(NAMES, TYPES):
            for one in measure(file, options, Path(directory)):
                print(one.line, flush=True)
                found.append(one)
    faults = broken(found)
    print("", *(faults or ["every bound is kept"]), sep="\n")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
