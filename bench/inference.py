"""Speed of inference against llama.cpp on the same files, in one run, beside the error of each.

python bench/inference.py [FILE.gguf ...] [--threads 1,2] [--rounds 5] [--llama-python PATH]

Without files: those of bench/model_files.py, made where they are missing. Each file needs its
Hugging Face directory, NAME-hf beside NAME-TYPE.gguf, because no speed is printed without the
error of the same program against transformers. Both engines evaluate the same tokens in rounds
that alternate; a ratio is made of two measurements of one round, a share of the memory bandwidth
of a decode and of the read loop just before and after it. A round that other work disturbed is
measured again, up to as often as there are rounds; only if there are still too few does it count.
Our engine starts for the second time, from the weights that it packed at the first.
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
from llama_build import llama_python
from model_files import model_files
from numerics import POSITIONS, SCRIPTS, cache_of, engine_logits
from peak import peaks
from process import Worker
from reference import distance, folder_of, reference_logits
from work import Work, work_of

from lockstep.artifacts.record import atomic_write_text
from lockstep.native.read_rate import read_rates

NAMES = ("qwen3-0.6b", "qwen2-0.5b", "gemma3-270m", "qwen3.5-0.8b")
TYPES = ("Q8_0", "Q5_K_M", "Q4_K_M")
REST_SECONDS = 0.5  # OpenMP's threads spin for a while after work, and would slow down who is next
BUSY_ENOUGH = 0.9  # of the time of its threads; below, other work took the processors
READS = 16  # of the read loop, before a decode and again after it: some tenths of a second each
LEAST_SHARE = 0.85  # of the read loop, asked of decoding


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is timed: tokens at once, or one by one behind others."""

    name: str
    tokens: int
    depth: int | None = None  # None: at once

    @property
    def request(self) -> dict[str, int]:
        """The same as the workers are asked."""
        if self.depth is None:
            return {"prefill": self.tokens}
        return {"decode": self.tokens, "depth": self.depth}

    @property
    def context(self) -> int:
        """Positions that it takes."""
        return self.tokens + (self.depth or 0)


PREFILL = Case(name="prefill 512", tokens=512)
DECODE = Case(name="decode 128", tokens=128, depth=0)
DEEP = Case(name="decode 128 at 2048", tokens=128, depth=2048)
# Cases that one process is timed with; its memory is that of the longest context.
GROUPS = {"short": (PREFILL, DECODE), "deep": (DEEP,)}
CASES = [case.name for cases in GROUPS.values() for case in cases]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table; an engine that did not run has a reason and no figures."""

    file: str
    threads: int
    case: str
    engine: str
    tokens_per_s: float | None
    spread: tuple[float, float] | None
    busy: float | None  # processor time over the time of its threads; low where others disturbed
    share: float | None  # decode: of the read loop; prefill: of the peak of multiply-adds
    peak_mib: float | None
    relative_error: float | None
    cosine: float | None
    ratio: float | None  # ours over this engine, median of the rounds
    ratio_spread: tuple[float, float] | None
    problem: str


@dataclass(frozen=True)
class Measured:
    """One measurement of one engine."""

    rate: float  # tokens per second
    busy: float
    read_gb_s: float | None  # decode: of the read loop beside it, all bytes by all seconds


class Side:
    """One engine on one file, with what was measured of it."""

    def __init__(self, name: str, python: str, file: Path, context: int, threads: int) -> None:
        arguments = (str(file), str(context), str(threads), cache_of(file), "last")
        self.name, self.threads = name, threads
        self.worker = Worker(name, python, SCRIPTS[name], *arguments)
        self.error: tuple[float, float] | None = None  # relative, least cosine

    def time(self, case: Case) -> Measured | None:
        """One measurement, after a rest; None if the engine has failed."""
        time.sleep(REST_SECONDS)
        n_reads = 0 if case.depth is None else READS
        reads = read_rates(self.threads, n_reads) if n_reads else []
        answer = self.worker.ask(case.request)
        if answer is None:
            return None
        if n_reads:
            time.sleep(REST_SECONDS)
            reads += read_rates(self.threads, n_reads)
        busy = answer["cpu_seconds"] / (answer["seconds"] * self.threads)
        read_gb_s = statistics.harmonic_mean(reads) / 1e9 if reads else None
        return Measured(case.tokens / answer["seconds"], busy, read_gb_s)


@dataclass(frozen=True, kw_only=True)
class Round:
    """Measurements of all engines that belong together, by name."""

    sides: dict[str, Measured | None]

    @property
    def is_quiet(self) -> bool:
        """Whether no engine missed its processors."""
        return all(m is None or m.busy >= BUSY_ENOUGH for m in self.sides.values())


def rounds_of(case: Case, sides: list[Side], n_rounds: int) -> list[Round]:
    """So many rounds, quiet ones if twice as many have enough of these."""
    rounds: list[Round] = []
    for i in range(2 * n_rounds):
        timed = {s.name: s.time(case) for s in (sides if i % 2 == 0 else sides[::-1])}
        rounds.append(Round(sides=timed))
        if sum(r.is_quiet for r in rounds) == n_rounds or any(m is None for m in timed.values()):
            break
    return sorted(rounds, key=lambda r: not r.is_quiet)[:n_rounds]


def measure(file: Path, threads: int, group: str, options: argparse.Namespace,
            wanted: np.ndarray) -> list[Row]:  # fmt: skip
    """Both engines on one file: their errors, then rounds that alternate."""
    cases = GROUPS[group]
    context = max(len(wanted), *(case.context for case in cases))
    pythons = {"lockstep": sys.executable, "llama.cpp": str(options.llama_python)}
    sides = [Side(name, pythons[name], file, context, threads) for name in pythons]
    try:
        with tempfile.TemporaryDirectory() as directory:
            for side in sides:
                logits = engine_logits(side.worker, len(wanted), 1, Path(directory))
                found = distance(logits, wanted)
                side.error = found.relative, found.least_cosine
        rounds = {case: rounds_of(case, sides, options.rounds) for case in cases}
    finally:
        for side in sides:
            side.worker.close()
    work = work_of(file, folder_of(file))
    peak = statistics.median(peaks(work.arithmetic, threads))
    return [
        row(file, case, side, rounds[case], work, peak)
        for case in cases
        for side in sides
    ]  # fmt: skip


def share(case: Case, measured: Measured, work: Work, peak_gop_s: float) -> float:
    """What part of the bound is reached; of bytes and operations that every engine needs."""
    if case.depth is None:
        return measured.rate * work.operations_per_token / 1e9 / peak_gop_s
    assert measured.read_gb_s is not None, "every decode has its reads"
    n_bytes = work.bytes_per_token(case.depth + case.tokens // 2)
    return measured.rate * n_bytes / 1e9 / measured.read_gb_s


def row(file: Path, case: Case, side: Side, rounds: list[Round], work: Work, peak: float) -> Row:
    """The figures of one engine."""
    own = [(r, m) for r in rounds if (m := r.sides[side.name]) is not None]
    rates = [m.rate for _, m in own]
    ours = [(r.sides["lockstep"], m) for r, m in own if side.name != "lockstep"]
    ratios = [first.rate / m.rate for first, m in ours if first is not None]
    shares = [share(case, m, work, peak) for _, m in own]
    return Row(
        file=file.stem, threads=side.threads, case=case.name, engine=side.name,
        tokens_per_s=statistics.median(rates) if rates else None,
        spread=(min(rates), max(rates)) if rates else None,
        busy=min(m.busy for _, m in own) if rates else None,
        share=statistics.median(shares) if rates else None,
        peak_mib=side.worker.peak_mib or None,
        relative_error=side.error[0] if side.error else None,
        cosine=side.error[1] if side.error else None,
        ratio=statistics.median(ratios) if ratios else None,
        ratio_spread=(min(ratios), max(ratios)) if ratios else None,
        problem=side.worker.problem,
    )  # fmt: skip


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| file | threads | case | engine | tokens/s (min to max) | share | peak MiB "
        "| relative error | ours / this (min to max) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        head = f"| {r.file} | {r.threads} | {r.case} | {r.engine} "
        if r.tokens_per_s is None or r.spread is None or r.busy is None:
            lines.append(f"{head}| did not run: {r.problem} | | | | |")
            continue
        ratio = "" if r.ratio is None or r.ratio_spread is None else (
            f"**{r.ratio:.2f}** ({r.ratio_spread[0]:.2f} to {r.ratio_spread[1]:.2f})"
        )  # fmt: skip
        busy = "" if r.busy >= BUSY_ENOUGH else f", disturbed: had {r.busy:.0%} of its threads"
        lines.append(
            f"{head}| {r.tokens_per_s:.1f} ({r.spread[0]:.1f} to {r.spread[1]:.1f}){busy} "
            f"| {shown(r.share, '.0%')} | {shown(r.peak_mib, '.0f')} "
            f"| {shown(r.relative_error, '.1e')} | {ratio} |"
        )
    return "\n".join(lines)


def shown(figure: float | None, spec: str) -> str:
    """A figure, or nothing where there is none."""
    return "" if figure is None else format(figure, spec)


def summary(rows: list[Row]) -> str:
    """A line for each file and number of threads: ratios, our rates, memory and errors of both."""
    lines = [
        f"| file | threads | {' | '.join(CASES)} | decode, share of a read loop | peak MiB, ours / "
        "llama.cpp | error, ours / llama.cpp |",
        f"|---|---|{'---|' * len(CASES)}---|---|---|",
    ]
    for file, threads in dict.fromkeys((r.file, r.threads) for r in rows):
        own = [r for r in rows if (r.file, r.threads) == (file, threads)]
        found = {(r.case, r.engine): r for r in own}
        pair = [next(r for r in own if r.engine == engine) for engine in ("lockstep", "llama.cpp")]
        highest = (max((r.peak_mib for r in own if r.engine == side.engine and r.peak_mib),
                       default=None) for side in pair)  # fmt: skip
        peak = " / ".join(shown(mib, ".0f") for mib in highest)
        error = " / ".join(shown(r.relative_error, ".1e") for r in pair)
        decode = found.get((DECODE.name, "lockstep"))
        share = shown(decode.share if decode else None, ".0%")
        cells = [
            cell(found.get((case, "lockstep")), found.get((case, "llama.cpp"))) for case in CASES
        ]
        lines.append(f"| {file} | {threads} | {' | '.join(cells)} | {share} | {peak} | {error} |")
    return "\n".join(lines)


def cell(ours: Row | None, peer: Row | None) -> str:
    """The ratio with its spread, and our tokens per second; an asterisk where others disturbed."""
    if ours is None or peer is None or peer.ratio is None or peer.ratio_spread is None:
        return ""
    disturbed = " *" if min(ours.busy or 0.0, peer.busy or 0.0) < BUSY_ENOUGH else ""
    spread = f"{peer.ratio_spread[0]:.2f} to {peer.ratio_spread[1]:.2f}"
    return f"**{peer.ratio:.2f}** ({spread}){disturbed}, {ours.tokens_per_s:.0f}/s"


def bar(file: str, case: str) -> float:
    """The asked ratio against llama.cpp at two threads."""
    if file.startswith("qwen3.5"):
        return 1.0
    if case != PREFILL.name:
        return 1.25
    return 1.3 if file == "qwen3-0.6b-Q5_K_M" else 2.0


def verdicts(rows: list[Row]) -> str:
    """What was asked for at two threads beside what was measured."""
    lines = []
    for r in rows:
        if r.threads == 2 and r.ratio is not None:
            ours = next(o for o in rows if (o.file, o.threads, o.case, o.engine)
                        == (r.file, 2, r.case, "lockstep"))  # fmt: skip
            quiet = min(r.busy or 0.0, ours.busy or 0.0) >= BUSY_ENOUGH
            lines.append(verdict(f"{r.file}, {r.case}", r.ratio, bar(r.file, r.case), quiet))
            if r.case == DECODE.name and ours.share is not None:
                name = f"{r.file}, {r.case}, share of the read loop"
                lines.append(verdict(name, ours.share, LEAST_SHARE, quiet))
    return "\n".join(lines)


def verdict(what: str, found: float, asked: float, quiet: bool) -> str:
    """One line; where other work disturbed, it judges nothing."""
    word = "disturbed, no verdict" if not quiet else "met" if found >= asked else "missed"
    return f"{what}: {found:.2f}, asked {asked}: {word}"


def pack_once(file: Path) -> None:
    """Our first start on a file, which packs its weights."""
    side = Side("lockstep", sys.executable, file, POSITIONS, 1)
    side.time(Case(name="first start", tokens=1))
    side.worker.close()


def main() -> None:
    """Runs what the flags ask for, prints the tables and writes the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("files", type=Path, nargs="*")
    parser.add_argument("--threads", default="2,1")
    parser.add_argument("--groups", default=",".join(GROUPS), help="short, deep")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--llama-python", type=Path, help="has llama-cpp-python (default: built)")
    parser.add_argument("--json", type=Path, default=Path("bench.json"), help="where the rows go")
    options = parser.parse_args()
    options.llama_python = options.llama_python or llama_python()
    rows: list[Row] = []
    for file in options.files or model_files(NAMES, TYPES):
        with tempfile.TemporaryDirectory() as directory:
            wanted = reference_logits(file, folder_of(file), POSITIONS, Path(directory))
        pack_once(file)
        for threads in map(int, options.threads.split(",")):
            for group in options.groups.split(","):
                measured = measure(file, threads, group, options, wanted)
                print(table(measured), end="\n\n", flush=True)
                rows += measured
                atomic_write_text(options.json, json.dumps([asdict(r) for r in rows], indent=2))
    print(summary(rows), verdicts(rows), sep="\n\n")


if __name__ == "__main__":
    main()
