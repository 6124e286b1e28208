"""Training speed and peak memory against PyTorch: the same model and data, alternating, in one run.

python bench/train.py --shapes abcd --batches 1,8 --threads 1,2 --rounds 5
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from peak import fp32_peak_gflops
from process import Worker
from shapes import SHAPES, Shape

from lockstep.artifacts.record import atomic_write_text

PEERS = ("hand", "hand-compiled", "transformers", "transformers-compiled")
REST_SECONDS = 0.5  # OpenMP's threads spin for a while after work, and would slow down who is next
LOSS_TOLERANCE = 2e-3  # relative; ten fp32 steps part by 1e-5, another model by 1e-1


class Trainer(Worker):
    """One implementation, with what was measured of it."""

    def __init__(self, name: str, shape: Shape, batch: int, threads: int, parameters: Path) -> None:
        script = "worker_lockstep.py" if name == "lockstep" else "worker_torch.py"
        arguments = (shape.name, str(batch), str(threads), str(parameters), name)
        super().__init__(name, sys.executable, script, *arguments)
        self.rates: list[float] = []
        self.first_losses: list[float] = []

    def steps(self, n: int) -> float:
        """Runs n steps and returns the seconds they took; 0 when the worker has failed."""
        answer = self.ask({"steps": n})
        if answer is None:
            return 0.0
        self.first_losses = self.first_losses or answer["losses"]
        return float(answer["seconds"])


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table; a peer that did not run has a reason and no figures."""

    shape: str
    batch: int
    threads: int
    name: str
    tokens_per_s: float | None
    spread: tuple[float, float] | None
    peak_mib: float | None
    gflops: float | None
    share_of_peak: float | None
    ratio: float | None  # ours over this peer, median of the rounds
    ratio_spread: tuple[float, float] | None
    problem: str


def parameters_file(shape: Shape, directory: str) -> Path:
    """Start weights for every worker: normal(0, 0.02), gains of one."""
    from worker_lockstep import config

    from lockstep.families import family_named

    rng = np.random.default_rng(0)
    arrays = {}
    for weight in family_named("qwen3").weights(config(shape)):
        draw = (
            np.ones(weight.shape) if len(weight.shape) == 1 else rng.normal(0, 0.02, weight.shape)
        )
        arrays[weight.id] = draw.astype(np.float32)
    path = Path(directory) / f"{shape.name}.npz"
    np.savez(path, **arrays)
    return path


def check_losses(workers: list[Trainer]) -> None:
    """Refuses to compare speeds of things that do not compute the same."""
    ours = next((w for w in workers if w.name == "lockstep"), None)
    for worker in workers if ours else ():
        for a, b in zip(ours.first_losses, worker.first_losses, strict=False):
            if not abs(a - b) <= LOSS_TOLERANCE * abs(b):
                raise SystemExit(f"{worker.name} and lockstep differ: losses {b} and {a}")


def measure(shape: Shape, batch: int, threads: int, options: argparse.Namespace) -> list[Row]:
    """Warms every worker up, then alternates rounds of equal length."""
    with tempfile.TemporaryDirectory() as directory:
        parameters = parameters_file(shape, directory)
        names = ("lockstep", *options.peers)
        workers = [Trainer(n, shape, batch, threads, parameters) for n in names]
        try:
            counts = {}
            for worker in workers:
                worker.steps(options.warmup)
                seconds = worker.steps(1) or 1.0
                counts[worker.name] = max(1, round(options.seconds / seconds))
            check_losses([w for w in workers if not w.problem])
            for _ in range(options.rounds):
                for worker in workers:
                    time.sleep(REST_SECONDS)
                    n = counts[worker.name]
                    seconds = worker.steps(n)
                    if seconds:
                        worker.rates.append(n * batch * shape.tokens / seconds)
        finally:
            for worker in workers:
                worker.close()
    peak = fp32_peak_gflops(threads)
    return [row(shape, batch, threads, w, workers[0], peak) for w in workers]


def row(shape: Shape, batch: int, threads: int, worker: Trainer, ours: Trainer, peak: float) -> Row:
    """The figures of one worker."""
    common = {"shape": shape.name, "batch": batch, "threads": threads, "name": worker.name}
    if worker.problem or not worker.rates:
        empty = dict.fromkeys(
            (
                "tokens_per_s",
                "spread",
                "peak_mib",
                "gflops",
                "share_of_peak",
                "ratio",
                "ratio_spread",
            )
        )
        return Row(**common, **empty, problem=worker.problem or "no round finished")
    rate = statistics.median(worker.rates)
    ratios = [a / b for a, b in zip(ours.rates, worker.rates, strict=False)]
    gflops = rate * shape.flop_per_token() / 1e9
    return Row(
        **common,
        tokens_per_s=rate,
        spread=(min(worker.rates), max(worker.rates)),
        peak_mib=worker.peak_mib,
        gflops=gflops,
        share_of_peak=gflops / peak,
        ratio=statistics.median(ratios) if ratios else None,
        ratio_spread=(min(ratios), max(ratios)) if ratios else None,
        problem="",
    )


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table, ours first in each group."""
    lines = [
        "| shape | batch | threads | implementation | tokens/s (min to max) "
        "| GFLOP/s, share of peak | peak MiB | ours / this (min to max) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        head = f"| {r.shape} | {r.batch} | {r.threads} | {r.name} "
        if r.tokens_per_s is None or r.spread is None or r.gflops is None:
            lines.append(f"{head}| did not run: {r.problem} | | | |")
            continue
        ratio = "" if r.name == "lockstep" or r.ratio is None or r.ratio_spread is None else (
            f"{r.ratio:.2f} ({r.ratio_spread[0]:.2f} to {r.ratio_spread[1]:.2f})"
        )  # fmt: skip
        lines.append(
            f"{head}| {r.tokens_per_s:.0f} ({r.spread[0]:.0f} to {r.spread[1]:.0f}) "
            f"| {r.gflops:.1f}, {r.share_of_peak:.0%} | {r.peak_mib:.0f} | {ratio} |"
        )
    return "\n".join(lines)


def verdicts(rows: list[Row]) -> str:
    """Ours against the fastest peer of each group, beside the ratio that was asked for."""
    lines = []
    groups = dict.fromkeys((r.shape, r.batch, r.threads) for r in rows)
    for shape, batch, threads in groups:
        group = [r for r in rows if (r.shape, r.batch, r.threads) == (shape, batch, threads)]
        peers = [r for r in group if r.name != "lockstep" and r.tokens_per_s]
        if not peers or group[0].peak_mib is None:
            lines.append(f"({shape}) batch {batch}, {threads} threads: nothing to compare with")
            continue
        best = max(peers, key=lambda r: r.tokens_per_s or 0.0)
        memory = group[0].peak_mib / (best.peak_mib or 1.0)
        bar = SHAPES[shape].bars.get(batch)
        asked = f"asked {bar}" if bar else "no bar"
        lines.append(
            f"({shape}) batch {batch}, {threads} threads: "
            f"{best.ratio:.2f} x {best.name} ({asked}), memory {memory:.2f} of its (asked 0.50)"
        )
    return "\n".join(lines)


def main() -> None:
    """Runs what the flags ask for and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shapes", default="abc", help="letters of the shapes to run")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="aimed length of one round")
    parser.add_argument("--warmup", type=int, default=3, help="steps before the first round")
    parser.add_argument("--peers", type=lambda s: s.split(","), default=list(PEERS))
    parser.add_argument("--json", type=Path, default=Path("bench.json"), help="where the rows go")
    options = parser.parse_args()
    rows: list[Row] = []
    for letter in options.shapes:
        for batch in map(int, options.batches.split(",")):
            for threads in map(int, options.threads.split(",")):
                measured = measure(SHAPES[letter], batch, threads, options)
                print(table(measured), end="\n\n", flush=True)
                rows += measured
                atomic_write_text(options.json, json.dumps([asdict(r) for r in rows], indent=2))
    print(verdicts(rows))


if __name__ == "__main__":
    main()
