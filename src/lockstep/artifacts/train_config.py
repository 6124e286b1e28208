"""train_init_config.json, also saved as config.json: what `init` fixed for the life of a run."""

from __future__ import annotations

from dataclasses import dataclass

from lockstep.artifacts.codec import Scalar
from lockstep.artifacts.record import Artifact

CONFIG_FILE = "config.json"


@dataclass(frozen=True, kw_only=True)
class AdamWSettings:
    """The optimizer's constants."""

    beta1: float
    beta2: float
    eps: float
    weight_decay: float


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Artifact, file="train_init_config.json", schema="lockstep.train_config/1"):
    """The model's family and dimensions; `family_config` is the family's own record of them.

    History: 1 the first.
    """

    created_at: str
    lockstep_version: str
    template: str
    num_layers: int
    embed_dim: int
    hidden_dim: int
    vocab_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    context_len: int
    rope_theta: float
    rms_norm_eps: float
    tie_embeddings: bool
    dtype: str
    n_parameters: int
    init: str
    train_seed: int
    adamw: AdamWSettings
    family_config: dict[str, Scalar]

    def dims(self) -> dict[str, int]:
        """The dimensions that a training must not change, by name."""
        return {
            "layers": self.num_layers,
            "embed_dim": self.embed_dim,
            "hidden_dim": self.hidden_dim,
            "vocab_size": self.vocab_size,
            "num_heads": self.num_heads,
            "num_kv_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "context_len": self.context_len,
        }
