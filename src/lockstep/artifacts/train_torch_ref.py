"""train_torch_ref.json: the same training by an independent implementation in PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, field

from lockstep.artifacts.record import Artifact


@dataclass(frozen=True, kw_only=True)
class TorchStep:
    """One optimizer step; the norm is taken before clipping."""

    step: int
    epoch: int
    loss: float
    grad_norm: float
    lr: float
    step_ms: float


@dataclass(frozen=True, kw_only=True)
class TorchReference(Artifact, file="train_torch_ref.json", schema="lockstep.train_torch_ref/1"):
    """What PyTorch made of the same start, data and schedule.  History: 1 the first."""

    run_dir: str
    model_class: str
    torch_version: str
    transformers_version: str
    epochs: int
    seq_len: int
    total_tokens: int
    steps: int
    lr: float
    weight_decay: float
    max_grad_norm: float
    seed: int
    threads: int
    vocab_size: int
    num_layers: int
    embed_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float
    first_loss: float | None
    final_loss: float | None
    min_loss: float | None
    loss_curve: tuple[TorchStep, ...]
    params_sha256: str
    wall_s: float
    not_measured: dict[str, str] = field(default_factory=dict)
