"""The whole way of a run: train, promote, evaluate, and one report with a true status."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from math import nan

from lockstep.artifacts import Check, RunDir, Scalar, all_pass, utc_now
from lockstep.artifacts.dataset_qc import DatasetQc
from lockstep.artifacts.loss_curve import LossRow
from lockstep.artifacts.pipeline_report import GateResult, LossSummary, PipelineReport
from lockstep.artifacts.post_train_eval import PostTrainEval
from lockstep.artifacts.tokenizer_roundtrip import TokenizerRoundtrip
from lockstep.artifacts.train_report import E2E_FILE, TrainReport
from lockstep.artifacts.train_settings import TrainSettings
from lockstep.engine.bump import BUMP_FILE
from lockstep.engine.model import open_run_model
from lockstep.training.eval_record import EvalRequest
from lockstep.training.evaluate import evaluate
from lockstep.training.observer import Progress
from lockstep.training.promote import promote
from lockstep.training.records import STAGE
from lockstep.training.telemetry import NO_TORCH
from lockstep.training.train import TrainOutcome, TrainRequest, train

_TURNED_OFF = "turned off for this training"


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineRequest:
    """A training, and what follows it; no evaluation if `evaluation` is None."""

    training: TrainRequest
    evaluation: EvalRequest | None = field(default_factory=EvalRequest)
    promoted: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineOutcome:
    """What was done; there is no report of a training that was interrupted."""

    training: TrainOutcome
    report: PipelineReport | None
    evaluation: PostTrainEval | None


def run_pipeline(
    run: RunDir, request: PipelineRequest, progress: Progress | None = None
) -> PipelineOutcome:
    """Trains; if that reached its end, promotes, evaluates, and writes pipeline_report.json.

    Raises: what `train`, `promote` and `evaluate` raise.
    """
    outcome = train(run, request.training, progress)
    if outcome.interrupted is not None or outcome.report is None:
        return PipelineOutcome(training=outcome, report=None, evaluation=None)
    settings = TrainSettings.load(run.path)
    if request.promoted:
        promote(run)
    found = None
    if request.evaluation is not None:
        weights = None if request.promoted else run.checkpoints / "current"
        model = open_run_model(run, weights=weights, threads=settings.threads)
        found, _ = evaluate(run, model, settings, request.evaluation)
    report = pipeline_report(run, outcome.report, settings, found)
    report.save(run.work(outcome.run_id))
    report.save(run.path)
    return PipelineOutcome(training=outcome, report=report, evaluation=found)


def pipeline_report(
    run: RunDir,
    trained: TrainReport,
    settings: TrainSettings,
    evaluation: PostTrainEval | None,
) -> PipelineReport:
    """The report that follows from the records of the run."""
    qc, trip = DatasetQc.load(run.path), TokenizerRoundtrip.load(run.path)
    checks = _checks(qc, trip, trained, evaluation)
    data = trained.data_provenance[0]
    work = run.work(trained.run_id).relative_to(run.path)
    return PipelineReport(
        status="pass" if all_pass(checks) else "fail",
        failures=tuple(f"{c.name}: {c.reason}" for c in checks if c.verdict != "pass"),
        generated_at=utc_now(),
        run_id=trained.run_id,
        run_dir=str(run.path),
        dataset=data.source_path,
        dataset_sha256=data.hash,
        tokenizer=trained.tokenizer_lineage.type,
        curriculum_stage=STAGE,
        train_driver="lockstep",
        training=_settings(settings),
        artifacts={
            "work_dir": str(work),
            "ck_json": str(work / TrainReport.file),
            "e2e_json": E2E_FILE,
            "tokenizer": run.tokenizer.name,
            "weights": BUMP_FILE,
            "post_train_eval_json": PostTrainEval.file,
        },
        dataset_qc=GateResult(status=qc.status, path=DatasetQc.file),
        tokenizer_roundtrip=GateResult(status=trip.status, path=TokenizerRoundtrip.file),
        post_train_eval=_eval_gate(evaluation, checks),
        ck_loss=_summary(trained.loss_curve),
        torch_loss=None,
        checks=checks,
        not_measured={"torch_loss": NO_TORCH},
    )


def _settings(settings: TrainSettings) -> dict[str, Scalar]:
    return {**settings.fixed(), **{k: v for k, v in asdict(settings).items() if k == "threads"}}


def _summary(curve: Sequence[LossRow]) -> LossSummary:
    best = min(curve, key=lambda row: row.loss_ck)
    return LossSummary(
        steps=len(curve),
        first=curve[0].loss_ck,
        final=curve[-1].loss_ck,
        min=best.loss_ck,
        min_step=best.step,
    )


def _checks(
    qc: DatasetQc,
    trip: TokenizerRoundtrip,
    trained: TrainReport,
    evaluation: PostTrainEval | None,
) -> tuple[Check, ...]:
    """The gates of a pipeline without PyTorch: data, tokenizer, learning, drawing."""
    checks = [
        Check.measured(
            id="dataset_qc", name="failed gates of the data set", against="the rules",
            compared=qc.non_empty_lines, unit="rows",
            figure=float(len(qc.checks.failed)), relation="==", bound=0.0,
        ),
        Check.measured(
            id="tokenizer_roundtrip", name="rows back to the byte", against="the rows themselves",
            compared=trip.input_lines, unit="rows",
            figure=trip.line_match_rate, relation="==", bound=1.0,
        ),
        Check.measured(
            id="loss_fell", name="last loss as a share of the first", against="the first step",
            compared=trained.steps - 1, unit="later steps",
            figure=trained.final_ck_loss / trained.first_ck_loss, relation="<=", bound=1.0,
        ),
    ]  # fmt: skip
    if evaluation is not None and evaluation.status == "ok":
        checks += [
            Check.measured(
                id="valid_svg_rate", name="valid drawings", against="the safe SVG parser",
                compared=evaluation.sample_count, unit="samples",
                figure=_figure(evaluation.valid_svg_rate), relation=">=",
                bound=evaluation.min_valid_svg_rate,
            ),
            Check.measured(
                id="tag_faithfulness", name="tags true of the drawing", against="its predicates",
                compared=evaluation.predicates_total, unit="predicates",
                figure=_figure(evaluation.tag_faithfulness), relation=">=",
                bound=evaluation.min_faithfulness,
            ),
        ]  # fmt: skip
    return tuple(checks)


def _figure(rate: float | None) -> float:
    """A rate for a check; what was not measured is NaN, which fails and is written as null."""
    return nan if rate is None else rate


def _eval_gate(evaluation: PostTrainEval | None, checks: Sequence[Check]) -> GateResult:
    path = PostTrainEval.file
    if evaluation is None or evaluation.status != "ok":
        reason = _TURNED_OFF if evaluation is None else evaluation.reason
        return GateResult(status="skipped", path=path, reason=reason)
    wrong = [c for c in checks if c.id in ("valid_svg_rate", "tag_faithfulness") and c.reason]
    failed = [c for c in wrong if c.verdict != "pass"]
    reason = "; ".join(f"{c.name}: {c.reason}" for c in failed)
    return GateResult(status="fail" if failed else "pass", path=path, reason=reason)
