"""The angles of rope are those of transformers for every kind of stretch, at real sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lockstep.errors import UsageError
from lockstep.families import FAMILIES, LinearScaling, YarnScaling
from lockstep.families.rope import Rope
from lockstep.ops import OPS

# The frequencies of transformers are float32, each of some roundings.
FLOAT32 = 1e-6

LLAMA = {
    "model_type": "llama",
    "vocab_size": 8,
    "hidden_size": 4096,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 32,
    "max_position_embeddings": 131072,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}

KINDS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 8.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "yarn of the Qwen cards": YARN,
    "older spelling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
    "original left out": {"rope_type": "yarn", "factor": 2.0},
    "attention factor": {**YARN, "attention_factor": 1.25},
    "mscale": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.1},
    "mscale alone": {**YARN, "mscale": 0.7},
    "betas": {**YARN, "beta_fast": 64, "beta_slow": 2.5},
    "not truncated": {**YARN, "truncate": False, "factor": 40.0},
    "below one": {**YARN, "factor": 0.5},
}


@pytest.mark.torch
@pytest.mark.parametrize("theta", [1e4, 5e5])
@pytest.mark.parametrize("kind", KINDS)
def test_tables_are_those_of_transformers(kind: str, theta: float) -> None:
    import transformers
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    hf = {**LLAMA, "rope_theta": theta, "rope_scaling": dict(KINDS[kind])}
    theirs = LlamaRotaryEmbedding(transformers.LlamaConfig.from_dict(hf))
    rope = FAMILIES["llama"].from_hf(hf).ropes["rope"]
    cos_CR, sin_CR = OPS["rope_table"].reference(context=2, **rope.attrs())
    angle_R, magnitude_R = np.arctan2(sin_CR[1], cos_CR[1]), np.hypot(sin_CR[1], cos_CR[1])
    assert angle_R == pytest.approx(theirs.inv_freq.double().numpy(), rel=FLOAT32)
    assert magnitude_R == pytest.approx(theirs.attention_scaling, rel=FLOAT32)


def test_a_table_that_cannot_be_made_is_refused() -> None:
    yarn = YarnScaling(factor=2.0, original=8, magnitude=1.0)
    with pytest.raises(UsageError, match="theta: expected more than 1 for yarn"):
        Rope(theta=1.0, rotary=8, scaling=yarn)
    for factor in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="factor above 0"):
            LinearScaling(factor=factor)
    with pytest.raises(UsageError, match="an even rotary width"):
        OPS["rope_table"].infer(context=2, **Rope(theta=1e4, rotary=7).attrs())


def test_borders_of_yarn_that_meet_divide_by_nothing() -> None:
    yarn = YarnScaling(factor=2.0, original=8, magnitude=1.0, beta_fast=1e6, beta_slow=1e6)
    attrs = Rope(theta=1e4, rotary=8, scaling=yarn).attrs()
    cos_CR, sin_CR = OPS["rope_table"].reference(context=5, **attrs)
    assert np.isfinite(cos_CR).all()
    assert np.isfinite(sin_CR).all()
