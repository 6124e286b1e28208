"""Verification of checkpoints against its peers: `cmp`, NumPy, and the seed's way with Orbax.

python bench/verify.py --rounds 5 --mib 1024 --json bench_verify.json

Every contender is a whole process, its start included. They take turns, and a ratio is made of two
runs of one round. Memory is what each process held at most, as it says itself.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lockstep.artifacts.record import atomic_write_text

HERE = Path(__file__).parent
MIB = 1 << 20
KINDS = ("safetensors", "transposed", "orbax", "orbax-chunked")
CMP_BAR = 0.5  # of its bytes per second
NUMPY = """
import sys
from protocol import peak_mib
import numpy as np
from safetensors.numpy import load_file
a, b = (load_file(path)["emb"] for path in sys.argv[1:])
equal = np.array_equal(a.T, b)
print('{"peak_mib": %f}' % peak_mib())
sys.exit(not equal)
"""


@dataclass(frozen=True)
class Contender:
    """One command and the exit code that says that it found what is there."""

    name: str
    command: Sequence[str]
    code: int = 0
    peak_mib: Callable[[str], float | None] = lambda out: None


@dataclass
class Row:
    """What one contender took.  Units: seconds, MiB; `ratio` is its speed over the peer's."""

    case: str
    name: str
    n_bytes: int
    seconds: list[float] = field(default_factory=list)
    peak_mib: float | None = None
    ratio: float | None = None
    ratio_spread: tuple[float, float] | None = None
    load: list[float] = field(default_factory=list)


def lockstep(name: str, *words: str, code: int = 0) -> Contender:
    """Our command, which says in its document what it held."""

    def peak(out: str) -> float | None:
        found = json.loads(out)["cost"]["peak_bytes"]
        return None if found is None else found / MIB

    command = [str(Path(sys.executable).with_name("lockstep")), "verify", *words, "--json"]
    return Contender(name, command, code, peak)


def python(name: str, *words: str) -> Contender:
    """A script that prints what it held as its last line."""

    def peak(out: str) -> float:
        return float(json.loads(out.strip().splitlines()[-1])["peak_mib"])

    return Contender(name, [sys.executable, *words], peak_mib=peak)


def threads(n: int) -> str:
    """A number of threads in words."""
    return f"{n} thread{'s' * (n != 1)}"


def cases(kind: str, folder: Path) -> dict[str, list[Contender]]:
    """The contenders of each case, the peer first."""
    old, new, bad, claims = (str(folder / n) for n in ("old", "new", "bad", "claims.toml"))
    if kind == "safetensors":
        pair = (old + ".safetensors", new + ".safetensors")
        ours = [
            lockstep(f"lockstep, digests {digest}, {threads(jobs)}",
                     "diff", *pair, "--digest", digest, "--jobs", str(jobs))
            for digest in ("none", "sha256") for jobs in (1, 2)
        ]  # fmt: skip
        return {"identity": [Contender("cmp", ["cmp", *pair]), *ours]}
    if kind == "transposed":
        pair = (old + ".safetensors", new + ".safetensors")
        ours = [
            lockstep(f"lockstep, digests {digest}, {threads(jobs)}",
                     *pair, "--claims", claims, "--digest", digest, "--jobs", str(jobs))
            for digest in ("none", "sha256") for jobs in (1, 2)
        ]  # fmt: skip
        return {"transposed": [python("numpy, both in memory", "-c", NUMPY, *pair), *ours]}
    found = {}
    for name, target, code in (("equal", new, 0), ("one bit off", bad, 1)):
        ours = [
            lockstep(f"lockstep, {threads(jobs)}",
                     old, target, "--claims", claims, "--jobs", str(jobs), code=code)
            for jobs in (1, 2)
        ]  # fmt: skip
        seed = python("leaf by leaf, as the seed", str(HERE / "worker_seed.py"), old, target)
        found[f"{kind}, {name}"] = [seed, *ours]
    return found


def environment(folder: str) -> dict[str, str]:
    """Ours, with a place for bytecode, which an installed package has and a checkout may not."""
    kept = {key: v for key, v in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPATH": str(HERE), "PYTHONPYCACHEPREFIX": f"{folder}/bytecode"}


def once(contender: Contender, row: Row, environ: dict[str, str]) -> None:
    """One run.

    Raises: SystemExit if it does not find what is there.
    """
    began = time.perf_counter()
    done = subprocess.run(
        contender.command, capture_output=True, text=True, check=False, env=environ
    )
    row.seconds.append(time.perf_counter() - began)
    row.load.append(os.getloadavg()[0])
    if done.returncode != contender.code:
        raise SystemExit(
            f"{row.case}: {contender.name}: exit code {done.returncode}\n{done.stderr}"
        )
    peak = contender.peak_mib(done.stdout)
    if peak is not None:
        row.peak_mib = max(row.peak_mib or 0.0, peak)


def measure(
    case: str, contenders: Sequence[Contender], n_bytes: int, rounds: int, environ: dict[str, str]
) -> list[Row]:
    """Rounds in which all take turns, after one that is not counted and fills the page cache."""
    for contender in contenders:
        once(contender, Row(case, contender.name, n_bytes), environ)
    rows = [Row(case, contender.name, n_bytes) for contender in contenders]
    for _ in range(rounds):
        for contender, row in zip(contenders, rows, strict=True):
            once(contender, row, environ)
    peer = rows[0]
    for row in rows[1:]:
        ratios = [a / b for a, b in zip(peer.seconds, row.seconds, strict=True)]
        row.ratio, row.ratio_spread = statistics.median(ratios), (min(ratios), max(ratios))
    return rows


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table, the peer first in each case."""
    lines = [
        "| case | contender | seconds (min to max) | MB/s of both sides | peak MiB "
        "| times the peer's speed (min to max) |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        seconds = statistics.median(row.seconds)
        ratio = "" if row.ratio is None or row.ratio_spread is None else (
            f"**{row.ratio:.2f}** ({row.ratio_spread[0]:.2f} to {row.ratio_spread[1]:.2f})"
        )  # fmt: skip
        peak = "" if row.peak_mib is None else f"{row.peak_mib:.0f}"
        lines.append(
            f"| {row.case} | {row.name} | {seconds:.2f} ({min(row.seconds):.2f} to "
            f"{max(row.seconds):.2f}) | {row.n_bytes / seconds / 1e6:.0f} | {peak} | {ratio} |"
        )
    return "\n".join(lines)


def verdicts(rows: Sequence[Row]) -> str:
    """Ours beside what was asked for."""
    lines = []
    for row in rows:
        if row.ratio is None:
            peer = row
        elif row.case == "identity":
            lines.append(f"{row.name}: {row.ratio:.2f} of cmp (asked {CMP_BAR})")
        elif peer.peak_mib and row.peak_mib:
            memory = row.peak_mib / peer.peak_mib
            asked = "asked less of both" if row.case.startswith("orbax") else "no bar"
            lines.append(
                f"{row.case}: {row.name}: {1 / row.ratio:.2f} of the time of {peer.name}, "
                f"{memory:.2f} of its memory ({asked})"
            )
    return "\n".join(lines)


def main() -> None:
    """Makes what the flags ask for, measures, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kinds", type=lambda s: s.split(","), default=list(KINDS))
    parser.add_argument("--mib", type=int, default=1024, help="size of one checkpoint")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the checkpoints go; a temporary one")
    parser.add_argument("--json", type=Path, default=Path("bench_verify.json"))
    options = parser.parse_args()
    rows: list[Row] = []
    for kind in options.kinds:
        with tempfile.TemporaryDirectory(dir=options.folder) as directory:
            maker = [sys.executable, str(HERE / "checkpoints.py"), kind, directory]
            subprocess.run([*maker, str(options.mib)], check=True, capture_output=True)
            share = 2 if kind == "transposed" else 1
            n_bytes = 2 * options.mib * MIB // share
            for case, contenders in cases(kind, Path(directory)).items():
                environ = environment(directory)
                measured = measure(case, contenders, n_bytes, options.rounds, environ)
                print(table(measured), end="\n\n", flush=True)
                rows += measured
                atomic_write_text(options.json, json.dumps([asdict(r) for r in rows], indent=2))
    print(verdicts(rows))


if __name__ == "__main__":
    main()
