"""The canary: a small training on one row of the data, ours against PyTorch, step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

from lockstep.artifacts import Check, RunDir, all_pass, atomic_write_text, make_directory
from lockstep.artifacts.loss_curve import LossRow
from lockstep.artifacts.pipeline_report import CANARY_FILE, LossSummary, PipelineReport
from lockstep.artifacts.train_config import AdamWSettings
from lockstep.artifacts.train_report import E2E_FILE, Oracle, TrainReport
from lockstep.artifacts.train_torch_ref import TorchReference
from lockstep.data.rows import read_rows
from lockstep.engine.checkpoint import newest_valid
from lockstep.errors import GateError, InputError
from lockstep.native import usable_threads
from lockstep.proof.differences import Difference, curve_difference, tensor_difference
from lockstep.proof.fingerprint import SOURCE, source_sha256
from lockstep.proof.tolerances import CANARY_LOSS_MAX, CANARY_LOSS_MEAN, CANARY_PARAM_MAX
from lockstep.proof.twin import Recipe, Twin, train_twin
from lockstep.training.create import ModelRequest, create_run
from lockstep.training.pipeline import PipelineRequest, run_pipeline
from lockstep.training.train import TrainRequest

ROWS = (1, 2)
# The runbook's canary (cke runbook, step 3.1), ten epochs of 20 windows: 12,800 tokens.
MODEL = ModelRequest(
    layers=4, embed_dim=96, hidden_dim=192, num_heads=8, num_kv_heads=4,
    vocab_size=2048, context_len=64,
)  # fmt: skip
SETTINGS: Mapping[str, Any] = {
    "tokenizer": "ascii_bpe", "bpe_vocab_size": 2048, "epochs": 10, "seq_len": 64,
    "total_tokens": 1280, "batch": 1, "grad_accum": 1, "lr": 3e-4, "schedule": "constant",
    "warmup_steps": 0, "max_grad_norm": 1.0, "seed": 42, "packing": "stream", "save_every": 0,
    "prompt_loss": True,
}  # fmt: skip
ADAMW = AdamWSettings(beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.01)


@dataclass(frozen=True, kw_only=True)
class CanaryResult:
    """One canary and the three figures that decide."""

    row: int
    loss: Difference
    parameters: Difference
    report: PipelineReport

    @property
    def passed(self) -> bool:
        """Whether every check of its report passed."""
        return self.report.status == "pass"

    def line(self) -> str:
        """The line that the runbook prints."""
        return (
            f"[row{self.row}] max_abs={self.loss.maximum:.6e} mean_abs={self.loss.mean:.6e} "
            f"final_param={self.parameters.maximum:.6e} pass={self.passed}"
        )


def run_canaries(
    run: RunDir,
    source: Path,
    progress: Callable[[str], None] = lambda text: None,
    *,
    model: ModelRequest = MODEL,
    settings: Mapping[str, Any] = SETTINGS,
) -> tuple[CanaryResult, ...]:
    """Trains both canaries of a run on the first two rows of `source`.

    Another model, and settings other than the runbook's, are for tests.

    Raises: InputError if it has fewer than two rows; EnvironmentLacks without PyTorch.
    """
    rows = read_rows(source)
    if len(rows) < len(ROWS):
        raise InputError(
            f"{source}: expected at least {len(ROWS)} rows for the canaries, got {len(rows)}",
            hint="give a data set with more rows",
        )
    results = []
    for row in ROWS:
        progress(f"canary on row {row}")
        make_directory(run.canary_data(row).parent)
        atomic_write_text(run.canary_data(row), rows[row - 1] + "\n")
        results.append(run_canary(run, row, model, settings))
    return tuple(results)


def run_canary(
    run: RunDir, row: int, model: ModelRequest, settings: Mapping[str, Any]
) -> CanaryResult:
    """Trains on one row, ours and then PyTorch, and writes both sides and the verdict.

    Raises: what training raises; EnvironmentLacks without PyTorch.
    """
    canary = run.canary(row)
    create_run(canary, model, init="xavier_uniform", seed=42, adamw=ADAMW, force=True)
    training = TrainRequest(
        settings={**SETTINGS, **settings, "threads": usable_threads()},
        data=run.canary_data(row),
        force=True,
    )
    outcome = run_pipeline(canary, PipelineRequest(training=training, evaluation=None))
    trained = outcome.training.report
    if trained is None or outcome.report is None:
        raise GateError(
            f"canary on row {row}: expected a training to its end, it was interrupted",
            hint="run the canary again",
        )
    recipe = Recipe.of(canary)
    return judge(canary, row, trained, outcome.report, recipe, train_twin(canary, recipe))


def judge(
    canary: RunDir,
    row: int,
    trained: TrainReport,
    report: PipelineReport,
    recipe: Recipe,
    twin: Twin,
) -> CanaryResult:
    """Compares both sides, and writes train_ck, train_torch_ref and parity_pipeline."""
    checkpoint, _ = newest_valid(canary.checkpoints, recipe.model.shapes)
    ours = [(r.step, r.loss_ck) for r in trained.loss_curve]
    theirs = [(r.step, r.loss) for r in twin.reference.loss_curve]
    loss = curve_difference(ours, theirs, recipe.budget.total_steps)
    parameters = tensor_difference(checkpoint.parameters if checkpoint else {}, twin.parameters)
    checks = (*report.checks, *parity_checks(row, loss, parameters))
    verdict = all_pass(checks)
    work = canary.work(trained.run_id)
    twin.reference.save(work)
    with_torch = beside_torch(trained, twin.reference, loss, parameters, passed=verdict)
    with_torch.save(work)
    with_torch.save(canary.path, E2E_FILE)
    result = replace(
        report,
        status="pass" if verdict else "fail",
        failures=tuple(f"{c.name}: {c.reason}" for c in checks if c.verdict != "pass"),
        training={**report.training, SOURCE: source_sha256()},
        artifacts={
            **report.artifacts,
            "torch_json": str((work / TorchReference.file).relative_to(canary.path)),
        },
        checks=checks,
        torch_loss=_torch_summary(twin.reference),
        not_measured={k: v for k, v in report.not_measured.items() if k != "torch_loss"},
    )
    result.save(work)
    result.save(canary.path, CANARY_FILE)
    return CanaryResult(row=row, loss=loss, parameters=parameters, report=result)


def parity_ids(row: int) -> tuple[str, ...]:
    """The ids of the checks against PyTorch that a canary's report must hold."""
    return tuple(f"canary_row{row}_{name}" for name in ("loss_max", "loss_mean", "param_max"))


def parity_checks(row: int, loss: Difference, parameters: Difference) -> tuple[Check, ...]:
    """The runbook's three limits."""
    torch = "transformers trained by PyTorch"
    rows = (
        ("largest loss difference", loss, loss.maximum, CANARY_LOSS_MAX, "steps"),
        ("mean loss difference", loss, loss.mean, CANARY_LOSS_MEAN, "steps"),
        ("largest parameter difference", parameters, parameters.maximum, CANARY_PARAM_MAX,
         "parameters"),
    )  # fmt: skip
    return tuple(
        Check.measured(
            id=id, name=f"canary {row}: {name}", against=torch, compared=difference.n, unit=unit,
            figure=figure, relation="<=", bound=bound.value, reason=difference.problem,
        )
        for id, (name, difference, figure, bound, unit) in zip(parity_ids(row), rows, strict=True)
    )  # fmt: skip


def beside_torch(
    trained: TrainReport,
    reference: TorchReference,
    loss: Difference,
    parameters: Difference,
    *,
    passed: bool,
) -> TrainReport:
    """Our report with PyTorch's side filled in; what could not be compared stays null."""
    theirs = {row.step: row for row in reference.loss_curve}
    measured: dict[str, Any] = {
        "first_torch_loss": reference.first_loss,
        "final_torch_loss": reference.final_loss,
        "max_loss_abs_diff": _finite(loss.maximum),
        "mean_loss_abs_diff": _finite(loss.mean),
        "final_param_max_abs_diff": _finite(parameters.maximum),
        "final_param_mean_abs_diff": _finite(parameters.mean),
    }
    why = loss.problem or parameters.problem
    filled = {*measured, "loss_curve.loss_pt", "loss_curve.torch_grad_norm",
              "loss_curve.torch_step_ms"}  # fmt: skip
    reasons = {key: text for key, text in trained.not_measured.items() if key not in filled}
    reasons |= {key: why for key, value in measured.items() if value is None}
    return replace(
        trained,
        **measured,
        pass_parity=passed,
        loss_curve=tuple(_with_torch(row, theirs) for row in trained.loss_curve),
        oracle=Oracle(
            available=True,
            name=f"transformers {reference.transformers_version} {reference.model_class}",
            version=f"torch {reference.torch_version}",
        ),
        not_measured=reasons,
    )


def _with_torch(row: LossRow, theirs: Mapping[int, Any]) -> LossRow:
    twin = theirs.get(row.step)
    if twin is None:
        return row
    return replace(
        row, loss_pt=twin.loss, torch_grad_norm=twin.grad_norm, torch_step_ms=twin.step_ms
    )


def _torch_summary(reference: TorchReference) -> LossSummary:
    best = min(reference.loss_curve, key=lambda row: row.loss)
    return LossSummary(
        steps=reference.steps,
        first=reference.loss_curve[0].loss,
        final=reference.loss_curve[-1].loss,
        min=best.loss,
        min_step=best.step,
    )


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None
