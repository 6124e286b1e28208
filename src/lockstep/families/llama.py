"""Llama: the dense decoder that most others descend from.

Source: transformers modeling_llama; arXiv:2302.13971, arXiv:2407.21783 (rope scaling).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lockstep.errors import InputError
from lockstep.families.decoder import DecoderConfig, dense_block
from lockstep.families.decoder_config import (
    HF_IGNORED,
    architecture_keys,
    gguf_keys,
    gguf_settings,
    hf_keys,
    hf_settings,
)
from lockstep.families.family import Family
from lockstep.families.form import Pairs
from lockstep.families.keys import Keys, made_from_file
from lockstep.families.rope import LinearScaling, Llama3Scaling
from lockstep.families.rope_config import llama3_factors, llama3_of_factors
from lockstep.families.source import Renamed, TensorSource
from lockstep.families.weight import Scheme, Table, Weight
from lockstep.ir import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(DecoderConfig):
    """The dimensions and switches of a Llama model."""

    attention_bias: bool = False
    mlp_bias: bool = False


ROPE_FACTORS = "rope_freqs.weight"  # of GGUF: by how much each pair turns slower

TINY = Config(
    vocab=89,
    width=48,
    ffn=80,
    layers=2,
    heads=6,
    kv_heads=3,
    head_dim=12,
    context=40,
    tied=False,
)

VARIANTS = {
    "tied, biased, scaled": Config(
        vocab=61,
        width=32,
        ffn=72,
        layers=2,
        heads=4,
        kv_heads=1,
        head_dim=10,
        context=50,
        eps=1e-5,
        theta=500.0,
        activation="gelu_tanh",
        attention_bias=True,
        mlp_bias=True,
        scaling=Llama3Scaling(factor=8.0, low=1.0, high=4.0, original=36),
    ),
    "stretched evenly": Config(
        vocab=45,
        width=24,
        ffn=40,
        layers=1,
        heads=2,
        kv_heads=2,
        head_dim=14,
        context=50,
        scaling=LinearScaling(factor=2.5),
    ),
}

_HF_IGNORED = HF_IGNORED | {
    "is_llama_config": "said to converters",
    "pretraining_tp": "only how transformers split its matrices",
}


def from_hf(hf: Mapping[str, object]) -> Config:
    """The config from a Hugging Face config.json.

    Raises: InputError naming keys that are missing, unknown or not supported.
    """
    keys = Keys("config.json", hf)
    settings = hf_settings(keys, head_dim=None)
    settings["attention_bias"] = keys.take("attention_bias", bool, False)
    settings["mlp_bias"] = keys.take("mlp_bias", bool, False)
    keys.only("rope_interleaved", False)
    keys.finish(_HF_IGNORED)
    config: Config = made_from_file(Config, keys.where, settings)
    return config


def to_hf(config: Config) -> dict[str, object]:
    """The Hugging Face config.json of a config."""
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        **hf_keys(config),
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
    }


def from_gguf(metadata: Mapping[str, object], source: TensorSource) -> Config:
    """The config from GGUF metadata and its tensors, of which one shows how rope is slowed down.

    Raises: InputError naming keys that are missing, unknown or not supported.
    """
    keys = architecture_keys("llama", metadata)
    settings = gguf_settings(keys, "llama", source)
    settings["attention_bias"] = "blk.0.attn_q.bias" in source.shapes
    settings["mlp_bias"] = "blk.0.ffn_gate.bias" in source.shapes
    if ROPE_FACTORS in source.shapes:
        settings["scaling"] = _scaling_of_factors(source, settings)
    keys.finish({})
    config: Config = made_from_file(Config, keys.where, settings)
    return config


def _scaling_of_factors(source: TensorSource, settings: Mapping[str, Any]) -> Llama3Scaling | None:
    where = f"{source.where} {ROPE_FACTORS}"
    shape, head_dim = source.shapes[ROPE_FACTORS], settings["head_dim"]
    if shape != (head_dim // 2,) or settings["scaling"] is not None:
        raise InputError(
            f"{where}: expected one factor for each of {head_dim // 2} pairs and no other scaling, "
            f"got shape {shape} and {settings['scaling']}",
            hint="convert the model again",
        )
    return llama3_of_factors(source.read(ROPE_FACTORS), settings["theta"], where)


def to_gguf(config: Config) -> dict[str, object]:
    """The GGUF metadata of a config."""
    return gguf_keys(config, "llama") | {"llama.vocab_size": config.vocab}


def gguf_tensors(config: Config) -> dict[str, Array]:
    """How rope is slowed down, where it is so as in Llama 3."""
    if not isinstance(config.scaling, Llama3Scaling):
        return {}
    factors_R = llama3_factors(config.scaling, config.theta, config.head_dim)
    return {ROPE_FACTORS: factors_R.astype(np.float32)}


def own_tensors(source: TensorSource, scheme: Scheme) -> TensorSource:
    """What of a file is parameters: not the angles of rope, which follow from the config."""

    def is_own(name: str) -> bool:
        return (
            name != ROPE_FACTORS if scheme == "gguf" else not name.endswith(".rotary_emb.inv_freq")
        )

    return Renamed(source, {name: name for name in source.shapes if is_own(name)})


def weights(config: Config) -> tuple[Weight, ...]:
    """The weight table, in the order of the parameters."""
    c, table = config, Table()
    table.linear("embed", (c.vocab, c.width), "model.embed_tokens", "token_embd")
    for i in range(c.layers):
        t = table.under(f"layers.{i}", f"model.layers.{i}", f"blk.{i}")
        q, kv, bias = (c.q_width, c.width), (c.kv_width, c.width), c.attention_bias
        t.gain("norm1", c.width, "input_layernorm", "attn_norm")
        t.linear("attn.q", q, "self_attn.q_proj", "attn_q", bias=bias, gguf_form=Pairs(c.heads))
        t.linear("attn.k", kv, "self_attn.k_proj", "attn_k", bias=bias, gguf_form=Pairs(c.kv_heads))
        t.linear("attn.v", kv, "self_attn.v_proj", "attn_v", bias=bias)
        t.linear("attn.o", q[::-1], "self_attn.o_proj", "attn_output", bias=bias)
        t.gain("norm2", c.width, "post_attention_layernorm", "ffn_norm")
        t.linear("ffn.gate", (c.ffn, c.width), "mlp.gate_proj", "ffn_gate", bias=c.mlp_bias)
        t.linear("ffn.up", (c.ffn, c.width), "mlp.up_proj", "ffn_up", bias=c.mlp_bias)
        t.linear("ffn.down", (c.width, c.ffn), "mlp.down_proj", "ffn_down", bias=c.mlp_bias)
    table.gain("norm", c.width, "model.norm", "output_norm")
    if not c.tied:
        table.linear("head", (c.vocab, c.width), "lm_head", "output")
    return tuple(table.weights)


FAMILY = Family(
    name="llama",
    Config=Config,
    weights=weights,
    block=dense_block,
    TINY=TINY,
    variants=VARIANTS,
    hf_class="LlamaForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    from_gguf=from_gguf,
    to_gguf=to_gguf,
    gguf_tensors=gguf_tensors,
    own_tensors=own_tensors,
)
