"""`lockstep go`: GO or no-go for a run directory, with the evidence."""

from __future__ import annotations

import json

import click

from lockstep.artifacts import RunDir
from lockstep.cli.options import run_option
from lockstep.cli.verb import Outcome, Verb
from lockstep.proof.go import evaluate_go


@click.command(cls=Verb)
@run_option
def command(run: RunDir) -> Outcome:
    """Say whether the runbook may proceed on a run. Exit code 1 if not."""
    found = evaluate_go(run)
    found.save(run.path)
    evidence = [f"{c.verdict:7} {c.name}: {c.reason}" if c.reason else f"{c.verdict:7} {c.name}"
                for c in found.evidence]  # fmt: skip
    answer = json.dumps({"GO": found.go, "checks": found.checks}, indent=2)
    verdict = f"GO_EVIDENCE={'PASS' if found.go else 'FAIL'}"
    return Outcome(found.document(), "\n".join([*evidence, answer, verdict]), int(not found.go))
