"""`lockstep report`: one self-contained page from the files of a run."""

from __future__ import annotations

import click

from lockstep.artifacts import RunDir
from lockstep.cli.options import run_option
from lockstep.cli.verb import Outcome, Verb
from lockstep.report import write_report


@click.command(cls=Verb)
@run_option
def command(run: RunDir) -> Outcome:
    """Write the page that shows a run: verdicts, curves, speed, graph, tokens and drawings."""
    path = write_report(run)
    return Outcome({"run_dir": str(run.path), "report": str(path)}, f"wrote {path}")
