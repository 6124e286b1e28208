"""The whole comparison of a run: builds its debugging program, judges it, and keeps the record."""

from __future__ import annotations

from lockstep.artifacts import RunDir
from lockstep.artifacts.compare import Compare
from lockstep.errors import EnvironmentLacks
from lockstep.proof.compare import Progress, compare
from lockstep.proof.nearness import Near, nearness
from lockstep.proof.referee import referee
from lockstep.proof.subject import Subject, subject_of_run
from lockstep.proof.verdict import record_of


def compare_run(
    run: RunDir,
    *,
    batch: int = 2,
    tokens: int | None = None,
    seed: int = 0,
    progress: Progress = lambda text: None,
) -> Compare:
    """Compares a run's training program and writes compare.json.

    Raises: InputError if a record of the run is damaged; UsageError if a sequence is too long.
    """
    progress("reading the run")
    subject = subject_of_run(run, batch=batch, tokens=tokens, seed=seed)
    record = compare_subject(subject, run_dir=str(run.path), seed=seed, progress=progress)
    record.save(run.path)
    return record


def compare_subject(
    subject: Subject,
    *,
    run_dir: str = "",
    seed: int = 0,
    progress: Progress = lambda text: None,
    **build: object,
) -> Compare:
    """Compares a model's training program; `build` goes to `training_program`."""
    progress("compiling the program that keeps every value")
    built = subject.build(**build)
    progress("running the graph in float64")
    refereed = referee(built, subject, seed)
    findings = compare(built, subject, refereed, progress=progress)
    near: tuple[Near, ...] = ()
    lacks = ""
    try:
        progress("asking transformers")
        near = nearness(built, subject, refereed, findings)
    except EnvironmentLacks as error:
        lacks = error.message
    built.program.close()
    return record_of(built, subject, findings, near, run_dir=run_dir, lacks=lacks)
