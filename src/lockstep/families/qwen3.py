"""Qwen3: a dense decoder with grouped queries and a norm on every query and key head.

Source: transformers modeling_qwen3; arXiv:2505.09388.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lockstep.families.decoder import dense_block
from lockstep.families.decoder_config import (
    HF_IGNORED,
    architecture_keys,
    gguf_keys,
    gguf_settings,
    hf_keys,
    hf_settings,
)
from lockstep.families.family import Family
from lockstep.families.keys import Keys, made_from_file
from lockstep.families.rope import YarnScaling
from lockstep.families.source import TensorSource
from lockstep.families.weight import Table, Weight
from lockstep.families.windowed import (
    WindowedConfig,
    gguf_window,
    hf_window,
    hf_window_keys,
    no_gguf_window,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(WindowedConfig):
    """The dimensions and switches of a Qwen3 model."""

    attention_bias: bool = False


TINY = Config(vocab=101, width=48, ffn=80, layers=2, heads=6, kv_heads=2, head_dim=12, context=40)

VARIANTS = {
    "untied, biased": Config(
        vocab=67,
        width=40,
        ffn=56,
        layers=1,
        heads=4,
        kv_heads=4,
        head_dim=8,
        context=33,
        eps=1e-5,
        theta=1e6,
        tied=False,
        attention_bias=True,
        scaling=YarnScaling(factor=4.0, original=9, magnitude=1.2, beta_fast=1.5, beta_slow=0.3),
    ),
    "windowed": Config(
        vocab=59, width=32, ffn=40, layers=3, heads=4, kv_heads=2, head_dim=8, context=36,
        window=5, windowed_from=1,
    ),
}  # fmt: skip


def from_hf(hf: Mapping[str, object]) -> Config:
    """The config from a Hugging Face config.json.

    Raises: InputError naming keys that are missing, unknown or not supported.
    """
    keys = Keys("config.json", hf)
    settings = hf_settings(keys, head_dim=128)
    settings["attention_bias"] = keys.take("attention_bias", bool, False)
    settings |= hf_window(keys, settings["layers"])
    keys.finish(HF_IGNORED)
    config: Config = made_from_file(Config, keys.where, settings)
    return config


def to_hf(config: Config) -> dict[str, object]:
    """The Hugging Face config.json of a config."""
    return {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        **hf_keys(config),
        "attention_bias": config.attention_bias,
        **hf_window_keys(config),
    }


def from_gguf(metadata: Mapping[str, object], source: TensorSource) -> Config:
    """The config from GGUF metadata and its tensors.

    Raises: InputError naming keys that are missing, unknown or not supported.
    """
    keys = architecture_keys("qwen3", metadata)
    settings = gguf_settings(keys, "qwen3", source)
    settings["attention_bias"] = "blk.0.attn_q.bias" in source.shapes
    keys.finish(gguf_window(keys, "qwen3", settings["context"]))
    config: Config = made_from_file(Config, keys.where, settings)
    return config


def to_gguf(config: Config) -> dict[str, object]:
    """The GGUF metadata of a config.

    Raises: UsageError if layers have a window.
    """
    no_gguf_window(config, "qwen3")
    return gguf_keys(config, "qwen3")


def weights(config: Config) -> tuple[Weight, ...]:
    """The weight table, in the order of the parameters."""
    c, table = config, Table()
    table.linear("embed", (c.vocab, c.width), "model.embed_tokens", "token_embd")
    for i in range(c.layers):
        t = table.under(f"layers.{i}", f"model.layers.{i}", f"blk.{i}")
        q, kv, bias = (c.q_width, c.width), (c.kv_width, c.width), c.attention_bias
        t.gain("norm1", c.width, "input_layernorm", "attn_norm")
        t.linear("attn.q", q, "self_attn.q_proj", "attn_q", bias=bias)
        t.linear("attn.k", kv, "self_attn.k_proj", "attn_k", bias=bias)
        t.linear("attn.v", kv, "self_attn.v_proj", "attn_v", bias=bias)
        t.gain("attn.q_norm", c.head_dim, "self_attn.q_norm", "attn_q_norm")
        t.gain("attn.k_norm", c.head_dim, "self_attn.k_norm", "attn_k_norm")
        t.linear("attn.o", q[::-1], "self_attn.o_proj", "attn_output", bias=bias)
        t.gain("norm2", c.width, "post_attention_layernorm", "ffn_norm")
        t.linear("ffn.gate", (c.ffn, c.width), "mlp.gate_proj", "ffn_gate")
        t.linear("ffn.up", (c.ffn, c.width), "mlp.up_proj", "ffn_up")
        t.linear("ffn.down", (c.width, c.ffn), "mlp.down_proj", "ffn_down")
    table.gain("norm", c.width, "model.norm", "output_norm")
    if not c.tied:
        table.linear("head", (c.vocab, c.width), "lm_head", "output")
    return tuple(table.weights)


FAMILY = Family(
    name="qwen3",
    Config=Config,
    weights=weights,
    block=dense_block,
    TINY=TINY,
    variants=VARIANTS,
    hf_class="Qwen3ForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    from_gguf=from_gguf,
    to_gguf=to_gguf,
)
