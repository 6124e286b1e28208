"""The parity regimen: its stages in order, what they depend on, and their summary."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from lockstep.artifacts import Check, RunDir, atomic_write_text, make_directory, utc_now
from lockstep.artifacts.regimen import Regimen, RegimenStage, RegimenSummary
from lockstep.artifacts.stage_evidence import Evidence
from lockstep.proof.fingerprint import fingerprint_of
from lockstep.proof.stages import replay_accumulation, replay_determinism
from lockstep.proof.stitch import runtime_stitch

D1_STEPS = 8  # the runbook's stage stops after one; eight let an error of the optimizer show
E1_STEPS = 12
UNCHANGED = "nothing that the verdicts depend on has changed since they were reached"
_MARKDOWN = "training_parity_regimen_latest.md"


def run_regimen(
    run: RunDir, *, force: bool = False, progress: Callable[[str], None] = lambda text: None
) -> Regimen:
    """Runs D1, E1 and F1 on a run; an equal fingerprint lets an earlier pass stand.

    Raises: InputError if the run lacks what a stage replays; EnvironmentLacks without PyTorch.
    """
    fingerprint = fingerprint_of(run)
    before = None if force else Regimen.find(run.path)
    if before and before.summary.passed and before.fingerprint.digest == fingerprint.digest:
        return replace(before, skipped=True, skip_reason=UNCHANGED)
    stages = []
    for id, name, work in _stages(run):
        progress(f"stage {id}: {name}")
        stages.append(_stage(run, id, name, work))
    failed = tuple(stage.id for stage in stages if stage.status != "PASS")
    regimen = Regimen(
        generated_at=utc_now(),
        run_dir=str(run.path),
        skipped=False,
        skip_reason="",
        fingerprint=fingerprint,
        config={"d1_steps": D1_STEPS, "e1_steps": E1_STEPS},
        summary=RegimenSummary(
            passed=not failed,
            failed_stage_ids=failed,
            total_stages=len(stages),
            passed_stages=len(stages) - len(failed),
            stage_profile="default",
        ),
        stages=tuple(stages),
    )
    regimen.save(run.path)
    atomic_write_text(run.path / _MARKDOWN, as_markdown(regimen))
    return regimen


Work = Callable[[], tuple[Evidence, Path]]


def _stages(run: RunDir) -> Sequence[tuple[str, str, Work]]:
    def d1() -> tuple[Evidence, Path]:
        found = runtime_stitch(run, D1_STEPS)
        return found.evidence, found.save(run.path)

    def e1() -> tuple[Evidence, Path]:
        found = replay_determinism(run, E1_STEPS)
        return found.evidence, found.save(run.path)

    def f1() -> tuple[Evidence, Path]:
        found = replay_accumulation(run)
        return found.evidence, found.save(run.path)

    return (
        ("D1", "generated runtime against PyTorch, free-running", d1),
        ("E1", "replay determinism, to the bit", e1),
        ("F1", "replay with an accumulation snapshot", f1),
    )


def _stage(run: RunDir, id: str, name: str, work: Work) -> RegimenStage:
    began = time.perf_counter()
    found, path = work()
    seconds = time.perf_counter() - began
    log = make_directory(run.regimen_logs) / f"{id}.log"
    atomic_write_text(log, "".join(f"{line(check)}\n" for check in found.checks))
    return RegimenStage(
        id=id,
        name=name,
        status="PASS" if found.passed else "FAIL",
        duration_s=seconds,
        command=found.command,
        artifact_json=str(path.relative_to(run.path)),
        artifact_log=str(log.relative_to(run.path)),
        metrics={check.id: check.figure for check in found.checks},
        checks=found.checks,
        notes="; ".join(check.reason for check in found.checks if check.reason),
        rc=0 if found.passed else 1,
    )


def line(check: Check) -> str:
    """One check in one line of text."""
    figure = "null" if check.figure is None else f"{check.figure:.3e}"
    bound = "null" if check.bound is None else f"{check.bound:.3e}"
    return (
        f"{check.verdict.upper():7} {check.id}: {check.name} {figure} {check.relation} {bound}, "
        f"{check.compared} {check.unit} against {check.against}"
    )


def as_markdown(regimen: Regimen) -> str:
    """The summary as the runbook's table."""
    lines = [
        f"# Training parity regimen: {'PASS' if regimen.summary.passed else 'FAIL'}",
        "",
        f"- run: {regimen.run_dir}",
        f"- at: {regimen.generated_at}",
        f"- stages passed: {regimen.summary.passed_stages} of {regimen.summary.total_stages}",
        "",
        "| Stage | Status | Key metrics | Artifact |",
        "|---|---|---|---|",
    ]
    for stage in regimen.stages:
        worst = ", ".join(f"{c.id} {c.figure:.2e}" for c in stage.checks if c.figure is not None)
        lines.append(f"| {stage.id} | {stage.status} | {worst} | {stage.artifact_json} |")
    return "\n".join(lines) + "\n"
