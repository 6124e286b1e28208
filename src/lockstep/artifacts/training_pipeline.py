"""training_pipeline_latest.json: what the run is doing, from which data, with which result."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lockstep.artifacts.codec import Scalar
from lockstep.artifacts.record import Artifact
from lockstep.artifacts.train_report import DataProvenance, TokenizerLineage, TrainDims

StageStatus = Literal["active", "planned", "completed", "failed"]


@dataclass(frozen=True, kw_only=True)
class ModelDims:
    """The model in one row."""

    family: str
    layers: int
    embed_dim: int
    hidden_dim: int
    num_heads: int
    num_kv_heads: int
    context_len: int
    vocab_size: int
    n_parameters: int


@dataclass(frozen=True, kw_only=True)
class TimelineStage:
    """One stage of the plan and where it stands."""

    stage: str
    order: int
    status: StageStatus
    active: bool


@dataclass(frozen=True, kw_only=True)
class StageLoss:
    """The loss of one training of a stage; at most 200 points of (step, loss)."""

    stage: str
    run_id: str
    ended_at: str
    steps: int
    lr: float
    seq_len: int
    dataset_name: str
    first_loss: float
    final_loss: float
    drop_pct: float
    points: tuple[tuple[int, float], ...]
    stage_pass: int
    run_order: int
    parent_run_id: str | None


@dataclass(frozen=True, kw_only=True)
class StageLossHistory:
    """The trainings of a run, oldest first."""

    entries: tuple[StageLoss, ...]


@dataclass(frozen=True, kw_only=True)
class TrainingPipeline(
    Artifact, file="training_pipeline_latest.json", schema="lockstep.training_pipeline/1"
):
    """The state of the whole run.  History: 1 the first."""

    generated_at: str
    run_dir: str
    model: ModelDims
    active_stage: str
    curriculum_stage: str
    stage_timeline: tuple[TimelineStage, ...]
    backend: str
    optimizer: dict[str, Scalar]
    execution: dict[str, Scalar]
    train_dims: TrainDims
    data_provenance: tuple[DataProvenance, ...]
    tokenizer_lineage: TokenizerLineage
    stage_loss_history: StageLossHistory
    training_plan_path: str
    not_measured: dict[str, str] = field(default_factory=dict)
