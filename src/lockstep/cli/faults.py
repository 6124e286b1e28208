"""`lockstep faults`: plants faults into generated C and counts how many `compare` names."""

from __future__ import annotations

from pathlib import Path

import click

from lockstep.artifacts import make_directory
from lockstep.artifacts.faults import FaultRow
from lockstep.cli.verb import Outcome, Verb
from lockstep.proof.faults import run_faults


@click.command(cls=Verb)
@click.option("--count", type=click.IntRange(min=1), default=60, show_default=True,
              help="How many faults.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Of the draw.")
@click.option("--workers", type=click.IntRange(min=1), default=2, show_default=True,
              help="Processes that plant at the same time.")  # fmt: skip
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), help="Where to write faults.json."
)
def command(count: int, seed: int, workers: int, out: Path | None) -> Outcome:
    """Plant single faults into the C of small programs: does `compare` name the node?

    Sign, index, scale, bound, missing accumulation, wrong row, stale buffer and others, over all
    ops and phases, and stages in the wrong order. Fails below 95 in 100.
    """
    if out is not None:
        make_directory(out)
    record = run_faults(count, seed=seed, workers=workers, progress=_shown)
    if out is not None:
        record.save(out)
    verdict = "pass" if record.passed else "FAIL"
    redrawn = f"{record.redrawn_inert} that changed no bit and {record.redrawn_uncompilable} that "
    lines = [
        *(f"missed: {_line(row)}: {row.reason}" for row in record.rows if not row.right),
        f"drawn again: {redrawn}did not compile",
        f"{verdict}  named {record.named} of {record.planted} ({record.share:.1%}, "
        f"at least {record.bound:.0%}) in {record.wall_s:.0f} s",
    ]
    return Outcome(record.document(), "\n".join(lines), 0 if record.passed else 1)


def _shown(done: int, row: FaultRow) -> None:
    click.echo(f"{done:4d}  {'named ' if row.right else 'MISSED'}  {_line(row)}", err=True)


def _line(row: FaultRow) -> str:
    return f"{row.phase} {row.op}, {row.kind}: {row.what} -> {row.named or 'nobody'} ({row.how})"
