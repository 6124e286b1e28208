"""`lockstep parity`: the runbook's gates against PyTorch and against ourselves."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from lockstep.artifacts import RunDir
from lockstep.cli.options import run_option
from lockstep.cli.verb import Outcome, VerbGroup
from lockstep.proof.canary import run_canaries
from lockstep.proof.regimen import line, run_regimen
from lockstep.training.prepare import DATASET, TRAIN_FILE


def say(text: str) -> None:
    """Tells on stderr what is going on."""
    print(text, file=sys.stderr, flush=True)


@click.group(cls=VerbGroup)
def command() -> None:
    """Compare trainings with PyTorch, and with themselves."""


@command.command()
@run_option
@click.option("--data", type=click.Path(path_type=Path),
              help="Rows; the first two are used.  [default: the run's own]")  # fmt: skip
def canary(run: RunDir, data: Path | None) -> Outcome:
    """Train on rows 1 and 2, ours and PyTorch. Exit code 1 if they part too far."""
    results = run_canaries(run.require(), data or run.path / DATASET / TRAIN_FILE, say)
    passed = all(result.passed for result in results)
    verdict = "PASS" if passed else "FAIL"
    lines = [result.line() for result in results]
    lines += [f"row{r.row}: {failure}" for r in results for failure in r.report.failures]
    lines += [f"PARITY_GATE={verdict}", f"CANARY_PARITY_GATE={verdict}"]
    document = {"passed": passed, "rows": [result.report.document() for result in results]}
    return Outcome(document, "\n".join(lines), int(not passed))


@command.command()
@run_option
@click.option("--force", is_flag=True, help="Run again although nothing changed.")
def regimen(run: RunDir, force: bool) -> Outcome:
    """Run the stages D1, E1 and F1 on the run's own model. Exit code 1 if one fails."""
    found = run_regimen(run.require(), force=force, progress=say)
    lines = [f"{stage.id} {stage.status}  {stage.name}" for stage in found.stages]
    lines += [f"   {line(check)}" for stage in found.stages for check in stage.checks]
    if found.skipped:
        lines.append(f"not run again: {found.skip_reason}; --force runs it")
    lines.append(f"TRAINING_PARITY_REGIMEN={'PASS' if found.summary.passed else 'FAIL'}")
    return Outcome(found.document(), "\n".join(lines), int(not found.summary.passed))
