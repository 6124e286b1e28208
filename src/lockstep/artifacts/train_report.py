"""train_ck.json, also saved as train_e2e_latest.json: one training by this engine."""

from __future__ import annotations

from dataclasses import dataclass, field

from lockstep.artifacts.checkpoint_policy import Checkpoints
from lockstep.artifacts.codec import Scalar
from lockstep.artifacts.grad_norms import GradNormSeries
from lockstep.artifacts.loss_curve import LossRow
from lockstep.artifacts.record import Artifact
from lockstep.artifacts.training_parity import ParityRow

E2E_FILE = "train_e2e_latest.json"


@dataclass(frozen=True, kw_only=True)
class TrainDims:
    """The dimensions that were asked for and those of the run; a difference is an error."""

    source: str
    requested: dict[str, int]
    effective: dict[str, int]
    mismatches: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class DataProvenance:
    """The rows that training saw."""

    stage: str
    dataset_name: str
    source_path: str
    split: str
    rows: int
    token_count: int
    byte_size: int
    hash: str
    packing: str


@dataclass(frozen=True, kw_only=True)
class TokenizerLineage:
    """The tokenizer that training used."""

    type: str
    vocab_size: int
    tokenizer_path: str
    tokenizer_sha256: str
    pre_tokenizer: str
    reused_run_tokenizer: bool


@dataclass(frozen=True, kw_only=True)
class Oracle:
    """Who was asked for the truth, or why nobody was."""

    available: bool
    name: str
    version: str
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class TrainReport(Artifact, file="train_ck.json", schema="lockstep.train/1"):
    """One training; differences are against PyTorch, and null where PyTorch did not run.

    `pass_parity` is null where nothing was compared, `train_tok_s` where a resumed training had
    no step left.  History: 1 the first.
    """

    run_id: str
    generated_at: str
    family: str
    epochs: int
    seq_len: int
    total_tokens: int
    batch: int
    grad_accum: int
    seed: int
    threads: int
    optimizer: str
    optimizer_hparams: dict[str, Scalar]
    lr: float
    schedule: dict[str, Scalar]
    max_grad_norm: float
    backend: str
    train_mode: str
    source: str
    steps: int
    micro_steps: int
    optimizer_steps: int
    tokens_per_update: int
    first_ck_loss: float
    final_ck_loss: float
    first_torch_loss: float | None
    final_torch_loss: float | None
    max_loss_abs_diff: float | None
    mean_loss_abs_diff: float | None
    final_param_max_abs_diff: float | None
    final_param_mean_abs_diff: float | None
    final_optimizer_state_max_abs_diff: float | None
    pass_parity: bool | None
    loss_curve: tuple[LossRow, ...]
    parity_steps: tuple[ParityRow, ...]
    grad_norm_series: GradNormSeries
    train_dims: TrainDims
    data_provenance: tuple[DataProvenance, ...]
    tokenizer_lineage: TokenizerLineage
    checkpoints: Checkpoints
    oracle: Oracle
    resumed_from_step: int
    params_sha256: str
    wall_s: float
    train_tok_s: float | None
    not_measured: dict[str, str] = field(default_factory=dict)
