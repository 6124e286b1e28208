"""Gemma 3, the text model: local and global attention, norms before and after each block.

Source: transformers modeling_gemma3; arXiv:2503.19786.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lockstep.errors import InputError, UsageError
from lockstep.families import decoder
from lockstep.families.decoder import MAX_SIZE, Activation, Decoder, DecoderConfig
from lockstep.families.decoder_config import (
    HF_IGNORED,
    architecture_keys,
    gguf_keys,
    gguf_settings,
    hf_keys,
    hf_settings,
)
from lockstep.families.family import Family
from lockstep.families.form import LessOne
from lockstep.families.keys import AGAIN, WISH, Keys, made_from_file
from lockstep.families.rope import LinearScaling, Rope, Scaling
from lockstep.families.rope_config import hf_scaling
from lockstep.families.source import Renamed, TensorSource
from lockstep.families.weight import Scheme, Table, Weight
from lockstep.ir import Value

LOCAL, GLOBAL = "sliding_attention", "full_attention"  # as transformers calls the layers


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(DecoderConfig):
    """The dimensions and switches of a Gemma 3 model; `theta` and `scaling` are the global ones."""

    theta: float = 1e6
    activation: Activation = "gelu_tanh"
    attention_bias: bool = False
    query_scale: int = 0  # the scores are divided by its root; 0 becomes the width of a head
    window: int = 512  # how many positions a local layer sees
    period: int = 6  # each so many-th layer is global
    local_theta: float = 10000.0

    def __post_init__(self) -> None:
        # A class with slots is another object than the one that super() knows here.
        DecoderConfig.__post_init__(self)
        if self.query_scale == 0:
            object.__setattr__(self, "query_scale", self.head_dim)
        for name in ("query_scale", "window", "period"):
            size = getattr(self, name)
            if not isinstance(size, int) or not 1 <= size <= MAX_SIZE:
                raise UsageError(
                    f"config {name}: expected a whole number from 1 to {MAX_SIZE}, got {size!r:.40}"
                )
        if not (math.isfinite(self.local_theta) and self.local_theta > 0):
            raise UsageError(
                f"config local_theta: expected a positive number, got {self.local_theta}"
            )

    @property
    def layer_types(self) -> list[str]:
        """What each layer sees, in the words of transformers."""
        return _layer_types(self.layers, self.period)

    @property
    def ropes(self) -> dict[str, Rope]:
        """The angles of global and of local layers."""
        whole = Rope(theta=self.theta, rotary=self.head_dim, scaling=self.scaling)
        return {"rope": whole, "rope_local": Rope(theta=self.local_theta, rotary=self.head_dim)}

    @property
    def embed_scale(self) -> float:
        """The root of the width, rounded as everybody rounds it."""
        return float(np.float32(math.sqrt(self.width)))


TINY = Config(
    vocab=79,
    width=48,
    ffn=88,
    layers=3,
    heads=4,
    kv_heads=2,
    head_dim=10,
    context=40,
    query_scale=10,
    window=4,
    period=2,
    theta=5000.0,
    local_theta=100.0,
)

VARIANTS = {
    "untied, biased, stretched": Config(
        vocab=53,
        width=36,
        ffn=40,
        layers=2,
        heads=6,
        kv_heads=1,
        head_dim=16,
        context=33,
        eps=1e-5,
        tied=False,
        activation="silu",
        attention_bias=True,
        query_scale=7,
        window=3,
        period=2,
        scaling=LinearScaling(factor=8.0),
    ),
}

# What transformers takes where a config leaves it out, as those with vision do.
_HF_DEFAULTS: Mapping[str, object] = {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131072,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}

_HF_IGNORED = HF_IGNORED | {"cache_implementation": "how transformers runs it"}

# Around the text model of a model that sees.
_HF_VISION = HF_IGNORED | {
    "boi_token_index": "about images",
    "eoi_token_index": "about images",
    "image_token_index": "about images",
    "mm_tokens_per_image": "about images",
    "vision_config": "about images",
}


def from_hf(hf: Mapping[str, object]) -> Config:
    """The config from a Hugging Face config.json, of the text model alone or of one that sees.

    Raises: InputError naming keys that are missing, unknown or not supported.
    """
    where = "config.json"
    if hf.get("model_type") == "gemma3":
        outer = Keys(where, hf)
        text = outer.take_mapping("text_config") or {}
        outer.only("tie_word_embeddings", text.get("tie_word_embeddings", True))
        outer.finish(_HF_VISION)
        hf, where = text, f"{where} text_config"
    keys = Keys(where, {**_HF_DEFAULTS, **hf})
    config: Config = made_from_file(Config, where, _hf_settings(keys))
    keys.finish(_HF_IGNORED)
    return config


def _hf_settings(keys: Keys) -> dict[str, Any]:
    keys.only("attn_logit_softcapping")
    keys.only("final_logit_softcapping")
    keys.only("use_bidirectional_attention", False)
    theta, local_theta, scaling = _hf_ropes(keys, keys.take("max_position_embeddings", int))
    settings = hf_settings(
        keys, head_dim=256, tied=True, activation=("hidden_activation", "gelu_pytorch_tanh"),
        rope=lambda keys, context: (theta, scaling),
    )  # fmt: skip
    return settings | {
        "attention_bias": keys.take("attention_bias", bool, False),
        "query_scale": keys.take("query_pre_attn_scalar", int),
        "window": keys.take("sliding_window", int),
        "period": _hf_period(keys, settings["layers"]),
        "local_theta": local_theta,
    }


def _hf_ropes(keys: Keys, context: int) -> tuple[float, float, Scaling | None]:
    """Global theta, local theta and global scaling: by kind of layer since transformers 5."""
    theta = keys.take("rope_theta", float, 1e6)
    local_theta = keys.take("rope_local_base_freq", float, 10000.0)
    given = keys.take_mapping("rope_parameters")
    scaling = keys.take_mapping("rope_scaling")
    if given is not None and scaling is not None:
        raise InputError(
            f"{keys.where}: expected one of rope_parameters and rope_scaling, got both",
            hint=AGAIN,
        )
    ropes = Keys(f"{keys.where} rope_parameters", given or {})
    local = ropes.take_mapping(LOCAL) or {}
    whole = ropes.take_mapping(GLOBAL) or scaling or {}
    if "type" in whole and whole["type"] != whole.get("rope_type", "default"):
        # transformers 4 takes it for rope_type here, 5 ignores it.
        raise InputError(
            f"{keys.where} rope_scaling: expected rope_type to say {whole['type']!r:.40}, got type",
            hint="rename the key, if the model was trained so",
        )
    ropes.finish({})
    local_theta, local_scaling = hf_scaling(f"{ropes.where} {LOCAL}", local, local_theta, context)
    if local_scaling is not None:
        raise InputError(
            f"{ropes.where} {LOCAL}: expected no scaling, got {dict(local)!r:.60}",
            hint=WISH,
        )
    theta, found = hf_scaling(f"{ropes.where} {GLOBAL}", whole, theta, context)
    return theta, local_theta, found


def _hf_period(keys: Keys, layers: int) -> int:
    """Each how many-th layer is global: said, or shown by the list of layers."""
    said = keys.take("sliding_window_pattern", int, 0)
    unread = keys.take("_sliding_window_pattern", int, 0)  # which transformers writes, not reads
    layers = min(layers, decoder.MAX_LAYERS)
    listed = keys.take_list("layer_types")  # which counts where both are there
    wanted = [said or 6] if listed is None else [said, 6, *range(1, layers + 2)]
    if listed is None and unread not in (0, *wanted):
        raise InputError(
            f"{keys.where} layer_types: expected them beside _sliding_window_pattern {unread}, "
            f"without which transformers takes {wanted[0]}, got none",
            hint="name the pattern sliding_window_pattern, if the model was trained so",
        )
    for period in wanted:
        if period > 0 and listed in (None, _layer_types(layers, period)):
            return period
    raise InputError(
        f"{keys.where} layer_types: expected {layers}, a global one after each so many local ones, "
        f"got {len(listed or ())}: {listed!r:.60}",
        hint=WISH,
    )


def _layer_types(layers: int, period: int) -> list[str]:
    return [LOCAL if (layer + 1) % period else GLOBAL for layer in range(layers)]


def to_hf(config: Config) -> dict[str, object]:
    """The Hugging Face config.json of a config, as before transformers 5."""
    keys = hf_keys(config)
    keys["hidden_activation"] = keys.pop("hidden_act")
    return {
        "model_type": "gemma3_text",
        "architectures": ["Gemma3ForCausalLM"],
        **keys,
        "attention_bias": config.attention_bias,
        "query_pre_attn_scalar": config.query_scale,
        "sliding_window": config.window,
        "sliding_window_pattern": config.period,
        "layer_types": config.layer_types,
        "rope_local_base_freq": config.local_theta,
        # Else it is 0, and transformers gives the row of that token no gradient.
        "pad_token_id": None,
    }


def from_gguf(metadata: Mapping[str, object], source: TensorSource) -> Config:
    """The config from GGUF metadata and its tensors.

    Raises: InputError naming keys that are missing, unknown or not supported.
    """
    keys = architecture_keys("gemma3", metadata)
    settings = gguf_settings(keys, "gemma3", source)
    keys.only("gemma3.final_logit_softcapping", 0.0)
    window = keys.take("gemma3.attention.sliding_window", int, 0)
    settings |= {
        "activation": "gelu_tanh",
        "attention_bias": "blk.0.attn_q.bias" in source.shapes,
        "theta": keys.take_f32("gemma3.rope.freq_base", 1e6),
        "local_theta": keys.take_f32("gemma3.rope.freq_base_swa", 10000.0),
        "window": window or settings["context"],
        "period": keys.take("gemma3.attention.sliding_window_pattern", int, 6) if window else 1,
        "query_scale": _gguf_query_scale(settings),
    }
    keys.finish({})
    config: Config = made_from_file(Config, keys.where, settings)
    return config


def to_gguf(config: Config) -> dict[str, object]:
    """The GGUF metadata of a config."""
    return gguf_keys(config, "gemma3") | {
        "gemma3.rope.freq_base_swa": config.local_theta,
        "gemma3.attention.sliding_window": config.window,
        "gemma3.attention.sliding_window_pattern": config.period,
    }


def _gguf_query_scale(settings: Mapping[str, Any]) -> int:
    """What GGUF leaves out: the width of a head, but for the model of 27B.

    Source: llama.cpp src/models/gemma3.cpp, f_attention_scale.
    """
    of_27b = settings["layers"] == 62
    found: int = settings["width"] // max(settings["heads"], 1) if of_27b else settings["head_dim"]
    return found


_TEXT = {"language_model.model.": "model.", "language_model.lm_head.": "lm_head.",
         "model.language_model.": "model."}  # fmt: skip
_SIGHT = ("vision_tower.", "multi_modal_projector.")


def own_tensors(source: TensorSource, scheme: Scheme) -> TensorSource:
    """The tensors of the text model, under its own names, of a model that sees as well.

    Raises: InputError if two tensors would have one name.
    """
    if scheme == "gguf":
        return source
    names: dict[str, str] = {}
    for name in source.shapes:
        if name.removeprefix("model.").startswith(_SIGHT):
            continue
        start = next((s for s in _TEXT if name.startswith(s)), "")
        own = _TEXT.get(start, "") + name[len(start) :]
        if names.setdefault(own, name) != name:
            raise InputError(
                f"{source.where}: expected {own} once, got it as {names[own]} and as {name}",
                hint="check that the folder holds one model",
            )
    return Renamed(source, names)


def weights(config: Config) -> tuple[Weight, ...]:
    """The weight table, in the order of the parameters; gains are held whole, not less one."""
    c, table = config, Table()
    table.linear("embed", (c.vocab, c.width), "model.embed_tokens", "token_embd")
    for i in range(c.layers):
        t = table.under(f"layers.{i}", f"model.layers.{i}", f"blk.{i}")
        q, kv, bias = (c.q_width, c.width), (c.kv_width, c.width), c.attention_bias
        t.gain("norm1", c.width, "input_layernorm", "attn_norm", LessOne())
        t.linear("attn.q", q, "self_attn.q_proj", "attn_q", bias=bias)
        t.linear("attn.k", kv, "self_attn.k_proj", "attn_k", bias=bias)
        t.linear("attn.v", kv, "self_attn.v_proj", "attn_v", bias=bias)
        t.gain("attn.q_norm", c.head_dim, "self_attn.q_norm", "attn_q_norm", LessOne())
        t.gain("attn.k_norm", c.head_dim, "self_attn.k_norm", "attn_k_norm", LessOne())
        t.linear("attn.o", q[::-1], "self_attn.o_proj", "attn_output", bias=bias)
        t.gain("attn.norm", c.width, "post_attention_layernorm", "post_attention_norm", LessOne())
        t.gain("norm2", c.width, "pre_feedforward_layernorm", "ffn_norm", LessOne())
        t.linear("ffn.gate", (c.ffn, c.width), "mlp.gate_proj", "ffn_gate")
        t.linear("ffn.up", (c.ffn, c.width), "mlp.up_proj", "ffn_up")
        t.linear("ffn.down", (c.width, c.ffn), "mlp.down_proj", "ffn_down")
        t.gain("ffn.norm", c.width, "post_feedforward_layernorm", "post_ffw_norm", LessOne())
    table.gain("norm", c.width, "model.norm", "output_norm", LessOne())
    if not c.tied:
        table.linear("head", (c.vocab, c.width), "lm_head", "output")
    return tuple(table.weights)


def block(d: Decoder[Config], at: str, x_MD: Value) -> Value:
    """One layer, local or global: attention and a gated block, each between two norms."""
    c, layer = d.config, int(at.rpartition(".")[2])
    local = c.layer_types[layer] == LOCAL
    angles, window = ("rope_local", c.window) if local else ("rope", 0)

    h_MD = d.norm(f"{at}.norm1", x_MD)
    q_MN = d.norm(f"{at}.attn.q_norm", d.linear(f"{at}.attn.q", h_MD))
    k_MO = d.norm(f"{at}.attn.k_norm", d.linear(f"{at}.attn.k", h_MD))
    v_MO = d.linear(f"{at}.attn.v", h_MD)
    q_MN = d.rope(f"{at}.attn.q_rope", q_MN, angles)
    k_MO = d.rope(f"{at}.attn.k_rope", k_MO, angles)
    scale = c.query_scale**-0.5
    o_MN = d.attend(f"{at}.attn.core", q_MN, k_MO, v_MO, window=window, scale=scale)
    o_MD = d.norm(f"{at}.attn.norm", d.linear(f"{at}.attn.o", o_MN))
    x_MD = d.add(f"{at}.attn.add", x_MD, o_MD)

    h_MD = d.norm(f"{at}.norm2", x_MD)
    y_MD = d.norm(f"{at}.ffn.norm", d.gated(f"{at}.ffn", h_MD))
    return d.add(f"{at}.ffn.add", x_MD, y_MD)


FAMILY = Family(
    name="gemma3",
    Config=Config,
    weights=weights,
    block=block,
    TINY=TINY,
    variants=VARIANTS,
    hf_types=("gemma3_text", "gemma3"),
    hf_class="Gemma3ForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    from_gguf=from_gguf,
    to_gguf=to_gguf,
    own_tensors=own_tensors,
)
