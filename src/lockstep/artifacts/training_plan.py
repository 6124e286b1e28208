"""training_plan.json: the stages of a run, their data sets and the trainings done so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lockstep.artifacts.record import Artifact
from lockstep.artifacts.training_pipeline import StageStatus

STAGES = ("pretrain", "midtrain", "sft", "dpo", "grpo", "ppo")


@dataclass(frozen=True, kw_only=True)
class PlanDataset:
    """A data set of a stage; `hash` is the SHA-256 of the file."""

    name: str
    path: str
    rows: int
    kind: str
    split: Literal["train", "dev", "test", "holdout"]
    hash: str
    in_tokenizer_corpus: bool


@dataclass(frozen=True, kw_only=True)
class PlanRun:
    """A training that ended; later ones are appended."""

    run_id: str
    dataset: str
    lr: float
    steps: int
    first_loss: float
    final_loss: float
    drop_pct: float
    ended_at: str


@dataclass(frozen=True, kw_only=True)
class PlanStage:
    """One stage, in the order `seq`."""

    stage: str
    seq: int
    status: StageStatus
    datasets: tuple[PlanDataset, ...]
    runs: tuple[PlanRun, ...]


@dataclass(frozen=True, kw_only=True)
class PlanTokenizer:
    """The one tokenizer of the run."""

    type: str
    vocab_size: int
    path: str
    sha256: str
    corpora: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class TrainingPlan(Artifact, file="training_plan.json", schema="lockstep.training_plan/1"):
    """What is planned, and what was done of it.  History: 1 the first."""

    created_at: str
    updated_at: str
    run_dir: str
    active_stage: str
    stage_order: tuple[str, ...]
    tokenizer: PlanTokenizer
    stages: tuple[PlanStage, ...]
