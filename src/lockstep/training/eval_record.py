"""The record of an evaluation: rates over all samples, and what they say about the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from lockstep.artifacts import RunDir, utc_now
from lockstep.artifacts.post_train_eval import EvalRow, PostTrainEval
from lockstep.artifacts.samples import Sample
from lockstep.data.score import Score
from lockstep.engine.model import RunModel
from lockstep.engine.sampling import Sampling
from lockstep.training.prepare import DATASET

HOLDOUT_FILE = "holdout.txt"
_PREVIEW_CHARS = 160
_MIN_CLOSURE, _MAX_LOOPING = 0.90, 0.50  # the runbook's
_ADVICE = {
    "no_complete_svg_output": "train longer; nothing that was drawn is whole",
    "valid_svg_rate_below_threshold": "train longer, or lower the temperature",
    "svg_closure_incomplete": "give the samples more tokens, or pack whole rows",
    "repetition_or_looping_detected": "train longer, or use a repeat penalty",
    "faithfulness_below_threshold": "train longer, or on more rows per prompt",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalRequest:
    """How a model is evaluated; `max_tokens` 0 is all that the context has room for."""

    n_samples: int = 64
    max_tokens: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    min_valid_rate: float = 0.70
    min_faithfulness: float = 0.80


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What sampling gave; `reason` says why there is nothing."""

    samples: Sequence[Sample] = ()
    scores: Sequence[Score] = ()
    holdout_loss: float | None = None
    reason: str = ""


def eval_record(run: RunDir, model: RunModel, request: EvalRequest, found: Found) -> PostTrainEval:
    """The record; a rate is null where nothing was there to be counted."""
    samples, scores = found.samples, found.scores
    n, n_valid = len(samples), sum(s.valid for s in scores)
    n_true, n_asked = sum(s.n_true for s in scores), sum(len(s.predicates) for s in scores)
    n_copies = sum(s.exact_copy for s in scores)
    n_open = sum("<svg" in s.text for s in samples)
    n_closed = sum("</svg>" in s.text for s in samples)
    rates = {
        "valid_svg_rate": _rate(n_valid, n),
        "tag_faithfulness": _rate(n_true, n_asked),
        "closure_success_rate": _rate(n_closed, n_open),
        "repetition_loop_score": _rate(sum(not s.stopped for s in samples), n),
    }
    diagnosis = tuple(_diagnose(rates, request)) if n else ()
    return PostTrainEval(
        status="skipped" if found.reason else "ok",
        reason=found.reason,
        generated_at=utc_now(),
        mode="svg_output_eval",
        prompt_source=f"{DATASET}/{HOLDOUT_FILE}",
        max_tokens=request.max_tokens or model.session.context,
        temperature=request.sampling.temperature,
        min_valid_svg_rate=request.min_valid_rate,
        min_faithfulness=request.min_faithfulness,
        sample_count=n,
        valid_count=n_valid,
        invalid_count=n - n_valid,
        predicates_true=n_true,
        predicates_total=n_asked,
        exact_copy_count=n_copies,
        open_svg_tags=n_open,
        close_svg_tags=n_closed,
        exact_copy_rate=_rate(n_copies, n),
        **rates,
        holdout_loss=found.holdout_loss,
        sample_rows=tuple(_rows(samples, scores)),
        quality_diagnosis=diagnosis or (("ok",) if n else ()),
        quality_recommendations=tuple(_ADVICE[name] for name in diagnosis),
        model_dir=str(run.path),
        weights_sha256=model.manifest.weights_sha256,
        checkpoint_step=model.manifest.step,
        not_measured={} if n_open else {"closure_success_rate": "no sample opened an <svg>"},
    )


def _rate(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _rows(samples: Sequence[Sample], scores: Sequence[Score]) -> Iterator[EvalRow]:
    for i, (sample, score) in enumerate(zip(samples, scores, strict=True)):
        yield EvalRow(
            index=i,
            prompt=sample.prompt,
            valid=score.valid,
            error=score.reason,
            predicates_true=score.n_true,
            predicates_total=len(score.predicates),
            exact_copy=score.exact_copy,
            preview=sample.text[:_PREVIEW_CHARS],
        )


def _diagnose(rates: dict[str, float | None], request: EvalRequest) -> Iterator[str]:
    """What is wrong with the model, in the runbook's words where it has one."""
    valid = rates["valid_svg_rate"] or 0.0
    if valid == 0.0:
        yield "no_complete_svg_output"
    if valid < request.min_valid_rate:
        yield "valid_svg_rate_below_threshold"
    if (rates["closure_success_rate"] or 0.0) < _MIN_CLOSURE:
        yield "svg_closure_incomplete"
    if (rates["repetition_loop_score"] or 0.0) > _MAX_LOOPING:
        yield "repetition_or_looping_detected"
    if (rates["tag_faithfulness"] or 0.0) < request.min_faithfulness:
        yield "faithfulness_below_threshold"
