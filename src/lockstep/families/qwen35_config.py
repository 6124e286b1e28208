"""The config of Qwen3.5, from Hugging Face and GGUF files and back, and what of them is its own."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lockstep.errors import InputError, UsageError
from lockstep.families.decoder import MAX_LAYERS, MAX_SIZE, DecoderConfig
from lockstep.families.decoder_config import (
    HF_IGNORED,
    architecture_keys,
    gguf_keys,
    gguf_settings,
    hf_keys,
    hf_settings,
)
from lockstep.families.keys import AGAIN, WISH, Keys, made_from_file
from lockstep.families.rope import Rope
from lockstep.families.rope_config import hf_scaling_keys
from lockstep.families.source import Renamed, TensorSource
from lockstep.families.weight import Scheme
from lockstep.ops.causal_conv import MOST_TAPS
from lockstep.ops.gated_delta import WIDEST_KEY


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(DecoderConfig):
    """The dimensions and switches of a Qwen3.5 model.

    Layers `interval` - 1, 2 * `interval` - 1, ... are attention, of which `rotary` elements of a
    head turn; the others are delta rules. `tiled` is the order of value heads that GGUF has.
    """

    rotary: int
    interval: int = 4
    taps: int = 4
    key_heads: int
    key_width: int
    value_heads: int
    value_width: int
    tiled: bool = False
    attention_bias: bool = False

    def __post_init__(self) -> None:
        limits = {
            "rotary": min(self.head_dim, MAX_SIZE),
            "interval": MAX_LAYERS,
            "taps": MOST_TAPS,
            "key_heads": MAX_SIZE,
            "key_width": WIDEST_KEY,
            "value_heads": MAX_SIZE,
            "value_width": MAX_SIZE,
        }
        for name, most in limits.items():
            size = getattr(self, name)
            least = 2 if name in ("rotary", "taps") else 1
            if not isinstance(size, int) or not least <= size <= most:
                raise UsageError(
                    f"config {name}: expected a whole number from {least} to {most}, "
                    f"got {size!r:.40}",
                    hint="choose a number in this range",
                )
        if self.activation != "silu":
            raise UsageError(
                f"config activation: expected 'silu', got {self.activation!r:.40}",
                hint="the convolution and the gate of a delta rule know no other",
            )
        if self.rotary % 2 or self.value_heads % self.key_heads:
            raise UsageError(
                "config: expected an even rotary and value_heads that are a multiple of key_heads, "
                f"got {self.rotary}, {self.value_heads} and {self.key_heads}",
                hint="choose other numbers of heads",
            )
        DecoderConfig.__post_init__(self)

    @property
    def ropes(self) -> dict[str, Rope]:
        """The one table of angles, of a part of the head."""
        return {"rope": Rope(theta=self.theta, rotary=self.rotary, scaling=self.scaling)}

    @property
    def keys_width(self) -> int:
        """Width of a row of q, or of k, of the delta rule."""
        return self.key_heads * self.key_width

    @property
    def values_width(self) -> int:
        """Width of a row of v of the delta rule."""
        return self.value_heads * self.value_width

    @property
    def mixed_width(self) -> int:
        """Width of a row that passes the convolution: q, k and v."""
        return 2 * self.keys_width + self.values_width

    def is_attention(self, layer: int) -> bool:
        """Whether a layer is attention; else it is a delta rule."""
        return (layer + 1) % self.interval == 0

    @property
    def layer_types(self) -> list[str]:
        """What Hugging Face calls each layer."""
        return layer_types(self.layers, self.interval)


def layer_types(layers: int, interval: int) -> list[str]:
    """What Hugging Face calls each layer where each so many-th is attention."""
    kinds = ("linear_attention", "full_attention")
    return [kinds[(i + 1) % interval == 0] for i in range(layers)]


_ONE_POSITION = "a token of text has the same position in every section of M-RoPE"
_IGNORED = HF_IGNORED | {
    "mamba_ssm_dtype": "states are float32 in any case",
    "mtp_num_hidden_layers": "the heads that guess further tokens are not read",
    "mtp_use_dedicated_embeddings": "the heads that guess further tokens are not read",
}
_OUTER_IGNORED = HF_IGNORED | {
    "image_token_id": "images are never fed",
    "language_model_only": "images are never fed",
    "video_token_id": "images are never fed",
    "vision_config": "images are never fed",
    "vision_end_token_id": "images are never fed",
    "vision_start_token_id": "images are never fed",
}


def from_hf(hf: Mapping[str, object]) -> Config:
    """The config of the text model from a Hugging Face config.json, which may hold one of images.

    Raises: InputError naming keys that are missing, unknown or not supported.
    """
    text, where = _text_config(hf)
    text, part = _without_sections(text, where)
    keys = Keys(where, text)
    settings = hf_settings(keys, head_dim=256)
    head_dim = settings["head_dim"]
    settings["rotary"] = int(head_dim * part) if head_dim <= MAX_SIZE else 0
    settings["attention_bias"] = keys.take("attention_bias", bool, False)
    settings["interval"] = _hf_interval(keys, settings["layers"])
    settings["taps"] = keys.take("linear_conv_kernel_dim", int, 4)
    settings["key_heads"] = keys.take("linear_num_key_heads", int, 16)
    settings["key_width"] = keys.take("linear_key_head_dim", int, 128)
    settings["value_heads"] = keys.take("linear_num_value_heads", int, 32)
    settings["value_width"] = keys.take("linear_value_head_dim", int, 128)
    keys.only("attn_output_gate", True)
    keys.only("output_gate_type", "swish")
    keys.only("mlp_only_layers", [])
    config: Config = made_from_file(Config, where, settings)
    keys.finish(_IGNORED)
    return config


def _hf_interval(keys: Keys, layers: int) -> int:
    """Each how many-th layer is attention: shown by the list of layers, or said.

    Raises: InputError if a list has another order; one without attention has no interval.
    """
    said = keys.take("full_attention_interval", int, 4)
    layers = min(layers, MAX_LAYERS)
    listed = keys.take_list("layer_types")  # which counts where both are there
    wanted = [said] if listed is None else [said, *range(1, layers + 1)]
    for interval in wanted:
        if interval < 1 or listed in (None, layer_types(layers, interval)):
            return interval
    raise InputError(
        f"{keys.where} layer_types: expected {layers}, attention after each so many delta rules, "
        f"got {len(listed or ())}: {listed!r:.60}",
        hint=WISH,
    )


def _text_config(hf: Mapping[str, object]) -> tuple[Mapping[str, object], str]:
    """The part of a config that describes the text model, and its name."""
    outer = Keys("config.json", hf)
    text = outer.take_mapping("text_config")
    if text is None:
        return hf, outer.where
    tied = outer.take("tie_word_embeddings", bool, False)
    outer.finish(_OUTER_IGNORED)
    if "tie_word_embeddings" in outer and text.get("tie_word_embeddings", tied) != tied:
        raise InputError(
            f"config.json tie_word_embeddings: expected the same as in text_config, got {tied}",
            hint=AGAIN,
        )
    return {"tie_word_embeddings": tied, **text}, "config.json text_config"


def _without_sections(text: Mapping[str, object], where: str) -> tuple[dict[str, object], float]:
    """The config without what a text model has no use for, and the part of a head that turns."""
    plain = dict(text)
    name = "rope_parameters" if text.get("rope_parameters") is not None else "rope_scaling"
    rope = Keys(where, text).take_mapping(name)
    outer = Keys(where, text).take("partial_rotary_factor", float, 0.25)
    plain.pop("partial_rotary_factor", None)
    part = outer
    if rope is not None:
        part = Keys(f"{where} {name}", rope).take("partial_rotary_factor", float, outer)
        # A token of text has the same position in every section of M-RoPE.
        dropped = ("partial_rotary_factor", "mrope_section", "mrope_interleaved")
        plain[name] = {k: v for k, v in rope.items() if k not in dropped}
    if not 0.0 < part <= 1.0:
        raise InputError(
            f"{where} partial_rotary_factor: expected above 0, at most 1, got {part}", hint=AGAIN
        )
    return plain, part


def to_hf(config: Config) -> dict[str, object]:
    """The Hugging Face config.json of a config: that of a text model."""
    keys = hf_keys(config)
    keys.pop("rope_theta")
    keys.pop("rope_scaling", None)
    rope = hf_scaling_keys(config.scaling) if config.scaling else {"rope_type": "default"}
    return {
        "model_type": "qwen3_5_text",
        "architectures": ["Qwen3_5ForCausalLM"],
        **keys,
        "rope_parameters": {
            **rope,
            "rope_theta": config.theta,
            "partial_rotary_factor": _part(config.rotary, config.head_dim),
            "mrope_section": mrope_sections(config),
            "mrope_interleaved": True,
        },
        "attention_bias": config.attention_bias,
        "attn_output_gate": True,
        "full_attention_interval": config.interval,
        "layer_types": config.layer_types,
        "linear_conv_kernel_dim": config.taps,
        "linear_num_key_heads": config.key_heads,
        "linear_key_head_dim": config.key_width,
        "linear_num_value_heads": config.value_heads,
        "linear_value_head_dim": config.value_width,
    }


def _part(rotary: int, head_dim: int) -> float:
    """The share of a head that turns: what gives `rotary` when it is multiplied and cut off."""
    part = rotary / head_dim
    return part if int(head_dim * part) == rotary else math.nextafter(part, 1.0)


def mrope_sections(config: Config) -> list[int]:
    """How many of the pairs turn by each of the three positions of M-RoPE: as even as may be."""
    pairs = config.rotary // 2
    return [(pairs + 2 - i) // 3 for i in range(3)]


def from_gguf(metadata: Mapping[str, object], source: TensorSource) -> Config:
    """The config from GGUF metadata and its tensors.

    Raises: InputError naming keys that are missing, unknown or not supported.
    """
    turned = "qwen35.rope.dimension_count"
    rotary = Keys("gguf metadata", metadata).take(turned, int)
    keys = architecture_keys("qwen35", {k: v for k, v in metadata.items() if k != turned})
    settings: dict[str, Any] = gguf_settings(keys, "qwen35", source)
    settings["layers"] -= keys.take("qwen35.nextn_predict_layers", int, 0)
    settings["rotary"] = rotary
    settings["interval"] = keys.take("qwen35.full_attention_interval", int, 4)
    settings["taps"] = keys.take("qwen35.ssm.conv_kernel", int)
    settings["key_heads"] = keys.take("qwen35.ssm.group_count", int)
    settings["key_width"] = keys.take("qwen35.ssm.state_size", int)
    settings["value_heads"] = keys.take("qwen35.ssm.time_step_rank", int)
    values = keys.take("qwen35.ssm.inner_size", int)
    settings["value_width"] = values // max(settings["value_heads"], 1)
    settings["tiled"] = settings["value_heads"] != settings["key_heads"]
    settings["attention_bias"] = any(
        re.fullmatch(r"blk\.\d+\.attn_q\.bias", name) for name in source.shapes
    )
    _expect_three_positions(metadata.get("qwen35.rope.dimension_sections"))
    keys.finish({"qwen35.rope.dimension_sections": _ONE_POSITION})
    config: Config = made_from_file(Config, keys.where, settings)
    if config.values_width != values:
        raise InputError(
            f"gguf metadata qwen35.ssm.inner_size: expected a multiple of the "
            f"{config.value_heads} value heads, got {values}",
            hint=AGAIN,
        )
    return config


def to_gguf(config: Config) -> dict[str, object]:
    """The GGUF metadata of a config, whichever order of value heads it is in."""
    return {
        **gguf_keys(config, "qwen35"),
        "qwen35.rope.dimension_count": config.rotary,
        "qwen35.rope.dimension_sections": [*mrope_sections(config), 0],
        "qwen35.full_attention_interval": config.interval,
        "qwen35.ssm.conv_kernel": config.taps,
        "qwen35.ssm.group_count": config.key_heads,
        "qwen35.ssm.state_size": config.key_width,
        "qwen35.ssm.time_step_rank": config.value_heads,
        "qwen35.ssm.inner_size": config.values_width,
    }


def in_hf_order(config: Config) -> Config:
    """The same model with the value heads of a key head side by side."""
    return replace(config, tiled=False)


def _expect_three_positions(sections: object) -> None:
    """Refuses sections by which llama.cpp turns some pair by the fourth position, 0 in text.

    Pair j belongs to position j % 3 as long as there are pairs of it left.
    """
    if sections is None:
        return
    counts: list[Any] = list(sections) if isinstance(sections, Sequence) else []
    whole: list[int] = [n for n in counts if type(n) is int and 0 <= n <= MAX_SIZE]
    if len(whole) == len(counts) == 4 and sum(whole) > 0:
        pairs = range(min(sum(whole), 3 * max(whole) + 3))
        if all(j // 3 < whole[j % 3] for j in pairs):
            return
    raise InputError(
        "gguf metadata qwen35.rope.dimension_sections: expected pairs dealt out to three positions "
        f"in turn, got {sections!r:.60}",
        hint=AGAIN,
    )


def own_tensors(source: TensorSource, scheme: Scheme) -> TensorSource:
    """The tensors of the text model, under the names that it has alone.

    What sees images and what guesses further tokens is left out.
    """
    if scheme == "hf":
        left_out = re.compile(r"model\.visual\.|mtp\.")
    else:
        guessing = {re.match(r"blk\.\d+\.nextn\.", name) for name in source.shapes}
        layers = {match[0].removesuffix("nextn.") for match in guessing if match}
        left_out = re.compile("|".join(map(re.escape, sorted(layers))) or r"(?!)")
    names = {
        name.replace("model.language_model.", "model.", 1): name
        for name in source.shapes
        if not left_out.match(name)
    }
    return Renamed(source, names)
