"""GO or no-go for a run directory: the checklist's four answers, each from its own evidence."""

from __future__ import annotations

from typing import TypeVar

from lockstep.artifacts import Artifact, Check, RunDir, content_hash, utc_now
from lockstep.artifacts.dataset_qc import DatasetQc
from lockstep.artifacts.go import Go
from lockstep.artifacts.pipeline_report import CANARY_FILE, PipelineReport
from lockstep.artifacts.regimen import Regimen
from lockstep.artifacts.tokenizer_roundtrip import TokenizerRoundtrip
from lockstep.errors import LockstepError
from lockstep.proof.canary import ROWS, parity_ids
from lockstep.proof.fingerprint import SOURCE, fingerprint_of, source_sha256

STAGES = ("D1", "E1", "F1")
R = TypeVar("R", bound=Artifact)


def evaluate_go(run: RunDir) -> Go:
    """Reads the evidence of a run, and decides; missing, damaged or stale evidence is a no.

    Raises: InputError if there is no such run.
    """
    run.require()
    dataset, tokenizer = _dataset(run), _tokenizer(run)
    stages = tuple(_stage(run, id) for id in STAGES)
    canaries = tuple(_canary(run, row) for row in ROWS)
    checks = {
        "dataset_qc_pass": dataset.verdict == "pass",
        "tokenizer_exact_match": tokenizer.verdict == "pass",
        "D1_E1_F1_pass": all(stage.verdict == "pass" for stage in stages),
        "canary_row1_row2_pass": all(canary.verdict == "pass" for canary in canaries),
    }
    return Go(
        go=all(checks.values()),
        checks=checks,
        generated_at=utc_now(),
        run_dir=str(run.path),
        evidence=(dataset, tokenizer, *stages, *canaries),
    )


def _read(kind: type[R], run: RunDir, file: str | None = None) -> tuple[R | None, str]:
    """A record, or why there is none."""
    try:
        found = kind.find(run.path, file)
    except LockstepError as error:
        return None, error.message
    return found, "" if found else f"{file or kind.file} is missing"


def _dataset(run: RunDir) -> Check:
    id, name, against, unit = "dataset_qc", "data set gates failed", "its rules", "rows"
    record, reason = _read(DatasetQc, run)
    path = run.path / "dataset" / "train.txt"
    if record and (not path.is_file() or content_hash(path) != record.sha256):
        record, reason = None, f"{DatasetQc.file} is about other rows than {path.name} holds now"
    if record is None:
        return Check.missing(id=id, name=name, against=against, unit=unit, reason=reason)
    return Check.measured(
        id=id, name=name, against=against, compared=record.non_empty_lines, unit=unit,
        figure=float(len(record.checks.failed)), relation="==", bound=0.0,
    )  # fmt: skip


def _tokenizer(run: RunDir) -> Check:
    id, name, against = "tokenizer_roundtrip", "rows back to the byte", "the rows themselves"
    record, reason = _read(TokenizerRoundtrip, run)
    if record and (
        not run.tokenizer.is_file() or content_hash(run.tokenizer) != record.tokenizer_sha256
    ):
        record, reason = (
            None,
            f"{TokenizerRoundtrip.file} is about another tokenizer than the run has now",
        )
    if record is None:
        return Check.missing(id=id, name=name, against=against, unit="rows", reason=reason)
    exact = record.exact_match and record.status == "pass"
    return Check.measured(
        id=id, name=name, against=against, compared=record.input_lines, unit="rows",
        figure=record.line_match_rate if exact else 0.0, relation="==", bound=1.0,
    )  # fmt: skip


def _stage(run: RunDir, id: str) -> Check:
    name, against, unit = f"stage {id} passed", "the parity regimen", "checks"
    regimen, reason = _read(Regimen, run)
    stage = regimen.stage(id) if regimen else None
    if regimen and not stage:
        reason = f"the regimen has no stage {id}"
    if regimen and regimen.fingerprint.digest != fingerprint_of(run).digest:
        stage, reason = None, "the run or the code changed after the regimen"
    if stage is None:
        return Check.missing(id=id, name=name, against=against, unit=unit, reason=reason)
    return Check.measured(
        id=id, name=name, against=against, compared=len(stage.checks), unit=unit,
        figure=float(stage.status == "PASS"), relation="==", bound=1.0, reason=stage.notes,
    )  # fmt: skip


def _canary(run: RunDir, row: int) -> Check:
    id, name = f"canary_row{row}", f"canary on row {row} passed"
    against, unit = "PyTorch, step by step", "checks"
    report, reason = _read(PipelineReport, run.canary(row), CANARY_FILE)
    if report:
        missing = set(parity_ids(row)) - {check.id for check in report.checks}
        data = run.canary_data(row)
        if missing:
            report, reason = None, f"{CANARY_FILE} lacks {', '.join(sorted(missing))}"
        elif not data.is_file() or content_hash(data) != report.dataset_sha256:
            report, reason = None, f"{CANARY_FILE} is about another row than {data.name} holds"
        elif report.training.get(SOURCE) != source_sha256():
            report, reason = None, "the code changed after the canary"
    if report is None:
        return Check.missing(id=id, name=name, against=against, unit=unit, reason=reason)
    return Check.measured(
        id=id, name=name, against=against, compared=len(report.checks), unit=unit,
        figure=float(report.status == "pass"), relation="==", bound=1.0,
        reason="; ".join(report.failures),
    )  # fmt: skip
