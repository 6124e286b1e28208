"""train_settings.json: what a training was asked for; a resume goes on with exactly this."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from lockstep.artifacts.codec import Scalar
from lockstep.artifacts.record import Artifact

# What a resumed training may choose anew: no number of the result depends on it.
FREE = frozenset({"save_every", "keep_last", "threads"})


@dataclass(frozen=True, kw_only=True)
class TrainSettings(Artifact, file="train_settings.json", schema="lockstep.train_settings/1"):
    """One training; `total_tokens` are those of an epoch, null for the data once.

    `prompt_loss` is whether the tags in front of a row are predicted too;
    `lr` is the highest rate, `save_every` 0 saves at the end only, `keep_last` 0 keeps all.
    History: 1 the first.
    """

    tokenizer: Literal["ascii_bpe", "bpe"]
    bpe_vocab_size: int
    pre_tokenizer: Literal["superbpe", "gpt-2", "smollm"]
    require_ascii: bool
    require_svg_rows: bool
    packing: Literal["stream", "sample"]
    prompt_loss: bool
    epochs: int
    seq_len: int
    batch: int
    grad_accum: int
    total_tokens: int | None
    optimizer: Literal["adamw", "sgd"]
    lr: float
    schedule: Literal["constant", "linear", "cosine"]
    warmup_steps: int
    final_lr_share: float
    max_grad_norm: float
    seed: int
    save_every: int
    keep_last: int
    threads: int
    reason: str = "total_tokens is null where the data is seen once in each epoch"

    def fixed(self) -> dict[str, Scalar]:
        """What may not change when the training is resumed."""
        return {k: v for k, v in asdict(self).items() if k not in FREE and k != "reason"}
