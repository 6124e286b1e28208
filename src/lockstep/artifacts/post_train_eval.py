"""post_train_eval.json: how well the trained model draws what held-out prompts ask for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lockstep.artifacts.record import Artifact


@dataclass(frozen=True, kw_only=True)
class EvalRow:
    """One sample in short; samples.json has all of it."""

    index: int
    prompt: str
    valid: bool
    error: str
    predicates_true: int
    predicates_total: int
    exact_copy: bool
    preview: str


@dataclass(frozen=True, kw_only=True)
class PostTrainEval(Artifact, file="post_train_eval.json", schema="lockstep.post_train_eval/1"):
    """Rates over all samples, null where there is none.

    `status` is `ok` when the evaluation ran, whatever it found; `reason` explains other values.
    `repetition_loop_score` is the share of samples that ran into the token limit.
    History: 1 the first.
    """

    status: Literal["ok", "skipped", "error"]
    reason: str
    generated_at: str
    mode: str
    prompt_source: str
    max_tokens: int
    temperature: float
    min_valid_svg_rate: float
    min_faithfulness: float
    sample_count: int
    valid_count: int
    invalid_count: int
    predicates_true: int
    predicates_total: int
    exact_copy_count: int
    open_svg_tags: int
    close_svg_tags: int
    valid_svg_rate: float | None
    tag_faithfulness: float | None
    exact_copy_rate: float | None
    closure_success_rate: float | None
    repetition_loop_score: float | None
    holdout_loss: float | None
    sample_rows: tuple[EvalRow, ...]
    quality_diagnosis: tuple[str, ...]
    quality_recommendations: tuple[str, ...]
    model_dir: str
    weights_sha256: str | None
    checkpoint_step: int | None
    not_measured: dict[str, str] = field(default_factory=dict)
