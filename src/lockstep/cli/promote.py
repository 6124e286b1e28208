"""`lockstep promote`: makes a checkpoint's weights those of the run."""

from __future__ import annotations

import click

from lockstep.artifacts import RunDir, read_lines
from lockstep.artifacts.run_ledger import LedgerRow, current
from lockstep.cli.options import run_option
from lockstep.cli.verb import Outcome, Verb
from lockstep.training.promote import promote


@click.command(cls=Verb)
@run_option
@click.option("--step", type=int, help="The checkpoint of this step.  [default: the newest]")
@click.option("--list-runs", is_flag=True, help="List the trainings instead.")
@click.option("--dry-run", is_flag=True, help="Verify and say which, but change nothing.")
def command(run: RunDir, step: int | None, list_runs: bool, dry_run: bool) -> Outcome:
    """Make a checkpoint's weights those of the run, both files by one rename."""
    if list_runs:
        return _list(run)
    ledger = _ledger(run.require())  # a damaged one is refused before anything is changed
    done = promote(run, step=step, dry_run=dry_run)
    trained = next((row for row in ledger if row.run_id == done.manifest.run_id), None)
    document = {
        "status": "dry_run" if dry_run else "promoted",
        "run_dir": str(run.path),
        "selector": done.selector,
        "selected": {
            "run_id": done.manifest.run_id,
            "stage": trained.stage_id if trained else None,
            "stage_pass": trained.stage_pass if trained else None,
            "phase_label": trained.phase_label if trained else None,
            "checkpoint_step": done.manifest.step,
            "checkpoint_id": done.path.name,
        },
        "target": str(run.weights),
        "weights_sha256": done.manifest.weights_sha256,
        "skipped_checkpoints": [{"path": str(s.path), "why": s.why} for s in done.skipped],
        "dry_run": dry_run,
    }
    lines = [f"skipped checkpoint {s.path.name}: {s.why}" for s in done.skipped]
    verb = "would promote" if dry_run else "promoted"
    lines.append(f"{verb} {done.path.name} ({done.manifest.weights_sha256[:12]})")
    return Outcome(document, "\n".join(lines))


def _ledger(run: RunDir) -> tuple[LedgerRow, ...]:
    """The trainings of the run."""
    return current(read_lines(run.ledger, LedgerRow)) if run.ledger.exists() else ()


def _list(run: RunDir) -> Outcome:
    rows = _ledger(run.require())
    names = ("run_order", "run_id", "stage_id", "stage_pass", "steps", "loss_final", "dataset_name")
    table = [{name: getattr(row, name) for name in names} for row in rows]
    lines = ["\t".join(("run_order", "run_id", "stage", "stage_pass", "steps", "final_loss",
                        "dataset"))]  # fmt: skip
    lines += ["\t".join(str(row[name]) for name in names) for row in table]
    return Outcome({"run_dir": str(run.path), "runs": table}, "\n".join(lines))
