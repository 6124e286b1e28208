"""How rope is stretched, from the configs of others and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from lockstep.errors import InputError
from lockstep.families.keys import AGAIN, Keys, made_from_file
from lockstep.families.rope import (
    LinearScaling,
    Llama3Scaling,
    Scaling,
    YarnScaling,
    yarn_magnitude,
)
from lockstep.ir import Array

_HF_KINDS = ("default", "linear", "llama3", "yarn")

# The converter takes the frequencies in float32: turns up to 4 are wrong by some ulps of 2.4e-7.
FACTORS_EXACT = 2e-6


def hf_rope(keys: Keys, context: int) -> tuple[float, Scaling | None]:
    """Theta and scaling: `rope_parameters` since transformers 5, two keys before.

    Raises: InputError naming the key that is missing, of another type or not supported.
    """
    new, old = keys.take_mapping("rope_parameters"), keys.take_mapping("rope_scaling")
    theta = keys.take("rope_theta", float, 10000.0)
    keys.only("partial_rotary_factor", 1.0, 1)
    if new is not None and old is not None and dict(new) != dict(old):
        raise InputError(
            f"{keys.where}: expected one of rope_parameters and rope_scaling, got both",
            hint=AGAIN,
        )
    given = new if new is not None else old
    if given is None:
        return theta, None
    name = "rope_scaling" if new is None else "rope_parameters"
    found, scaling = hf_scaling(f"{keys.where} {name}", given, theta, context)
    if "rope_theta" in given and "rope_theta" in keys and found != theta:
        raise InputError(
            f"{keys.where} rope_theta: expected {found} as in {keys.where} {name}, got {theta}",
            hint=AGAIN,
        )
    return found, scaling


def hf_scaling(
    where: str, given: Mapping[str, object], theta: float, context: int
) -> tuple[float, Scaling | None]:
    """Theta and scaling of one set of rope parameters; theta and context are the defaults.

    Raises: InputError naming the key that is missing, of another type or not supported.
    """
    rope = Keys(where, given)
    theta = rope.take("rope_theta", float, theta)
    rope.only("partial_rotary_factor", 1.0, 1)
    rope.only("rope_type", *_HF_KINDS)
    rope.only("type", *_HF_KINDS)
    kind = rope.take("rope_type", str, rope.take("type", str, "default"))
    scaling: Scaling | None = None
    if kind == "linear":
        scaling = made_from_file(LinearScaling, where, {"factor": rope.take("factor", float)})
    elif kind == "llama3":
        settings = {
            "factor": rope.take("factor", float),
            "low": rope.take("low_freq_factor", float),
            "high": rope.take("high_freq_factor", float),
            "original": rope.take("original_max_position_embeddings", int, context),
        }
        scaling = made_from_file(Llama3Scaling, where, settings)
    elif kind == "yarn":
        scaling = made_from_file(YarnScaling, where, _hf_yarn(rope, context))
    rope.finish({})
    return theta, scaling


def _hf_yarn(rope: Keys, context: int) -> dict[str, Any]:
    factor = rope.take("factor", float)
    mscale, all_dim = rope.take("mscale", float, 0.0), rope.take("mscale_all_dim", float, 0.0)
    if not all(math.isfinite(number) for number in (factor, mscale, all_dim)):
        raise InputError(
            f"{rope.where}: expected finite numbers, got {factor}, {mscale}, {all_dim}",
            hint=AGAIN,
        )
    given = yarn_magnitude(max(factor, 1.0), mscale, all_dim)
    return {
        "factor": factor,
        "original": rope.take("original_max_position_embeddings", int, context),
        "magnitude": rope.take("attention_factor", float, given),
        "beta_fast": rope.take("beta_fast", float, 0.0) or 32.0,
        "beta_slow": rope.take("beta_slow", float, 0.0) or 1.0,
        "truncate": rope.take("truncate", bool, True),
    }


def hf_scaling_keys(scaling: Scaling) -> dict[str, object]:
    """What a Hugging Face config holds under `rope_scaling`."""
    if isinstance(scaling, LinearScaling):
        return {"rope_type": "linear", "factor": scaling.factor}
    if isinstance(scaling, Llama3Scaling):
        return {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low,
            "high_freq_factor": scaling.high,
            "original_max_position_embeddings": scaling.original,
        }
    return {
        "rope_type": "yarn",
        "factor": scaling.factor,
        "original_max_position_embeddings": scaling.original,
        "attention_factor": scaling.magnitude,
        "beta_fast": scaling.beta_fast,
        "beta_slow": scaling.beta_slow,
        "truncate": scaling.truncate,
    }


def gguf_scaling(keys: Keys, arch: str, context: int) -> Scaling | None:
    """The scaling that GGUF metadata asks for.

    Raises: InputError naming the key that is of another type or not supported.
    """
    at = f"{arch}.rope.scaling"
    keys.only(f"{at}.type", "none", "linear", "yarn")
    factor = keys.take_f32(f"{at}.factor", 1.0)
    kind = keys.take(f"{at}.type", str, "linear")  # as llama.cpp takes a factor without a type
    original = keys.take(f"{at}.original_context_length", int, context)
    keys.take(f"{at}.finetuned", bool, False)  # says how the model was made, not what it does
    for name, neutral in (
        ("attn_factor", 1.0),
        ("yarn_ext_factor", 1.0),
        ("yarn_log_multiplier", 0.0),
    ):
        keys.only(f"{at}.{name}", neutral)
    yarn = {
        "magnitude": keys.take_f32(f"{at}.yarn_attn_factor", yarn_magnitude(max(factor, 1.0))),
        "beta_fast": keys.take_f32(f"{at}.yarn_beta_fast", 32.0),
        "beta_slow": keys.take_f32(f"{at}.yarn_beta_slow", 1.0),
    }
    if kind == "none" or factor in (0.0, 1.0):
        return None
    found: Scaling
    if kind == "linear":
        found = made_from_file(LinearScaling, keys.where, {"factor": factor})
    else:
        settings = {"factor": factor, "original": original, **yarn}
        found = made_from_file(YarnScaling, keys.where, settings)
    return found


def gguf_scaling_keys(scaling: Scaling | None, arch: str) -> dict[str, object]:
    """What GGUF metadata holds of a scaling; that of Llama 3 is a tensor instead."""
    at = f"{arch}.rope.scaling"
    if scaling is None or isinstance(scaling, Llama3Scaling):
        return {}
    if isinstance(scaling, LinearScaling):
        return {f"{at}.type": "linear", f"{at}.factor": scaling.factor}
    return {
        f"{at}.type": "yarn",
        f"{at}.factor": scaling.factor,
        f"{at}.original_context_length": scaling.original,
        f"{at}.yarn_attn_factor": scaling.magnitude,
        f"{at}.yarn_beta_fast": scaling.beta_fast,
        f"{at}.yarn_beta_slow": scaling.beta_slow,
    }


def llama3_factors(scaling: Llama3Scaling, theta: float, rotary: int) -> Array:
    """By how much each pair turns slower: what GGUF keeps as `rope_freqs.weight`."""
    turns_R = scaling.original * theta ** -(np.arange(0, rotary, 2) / rotary) / (2 * np.pi)
    kept_R = np.clip((turns_R - scaling.low) / (scaling.high - scaling.low), 0.0, 1.0)
    return 1.0 / (kept_R + (1.0 - kept_R) / scaling.factor)


def llama3_of_factors(factors_R: Array, theta: float, where: str) -> Llama3Scaling | None:
    """The scaling that gives these factors; `low` is taken as 1, of which the others are multiples.

    Raises: InputError if Llama 3's rule does not give them.
    """
    factors_R = np.asarray(factors_R, dtype=np.float64)
    if (factors_R == 1.0).all():
        return None
    turns_R = theta ** -(np.arange(len(factors_R)) / len(factors_R)) / (2 * np.pi)
    scaling = None
    if np.isfinite(factors_R).all() and (factors_R >= 1.0).all():
        scaling = _fitted(factors_R, turns_R)
    if scaling is not None:
        again_R = llama3_factors(scaling, theta, 2 * len(factors_R))
        if np.abs(1.0 / again_R - 1.0 / factors_R).max() <= FACTORS_EXACT:
            return scaling
    raise InputError(
        f"{where}: expected factors by which Llama 3 slows rope of base {theta:g} down, "
        f"got others: {', '.join(f'{f:.6g}' for f in factors_R[:4])} ...",
        hint="check the base (rope.freq_base), convert the model again, or report it as a wish",
    )


def _fitted(factors_R: Array, turns_R: Array) -> Llama3Scaling | None:
    """The scaling whose ramp runs through the factors between 1 and the largest."""
    factor = float(str(np.float32(factors_R.max())))
    kept_R = (1.0 / factors_R - 1.0 / factor) / (1.0 - 1.0 / factor)
    ramp = (factors_R > 1.0) & (factors_R < factors_R.max())
    high = 4.0  # of every Llama; what a ramp of one pair cannot tell
    if ramp.sum() > 1:
        slope, offset = np.polyfit(turns_R[ramp], kept_R[ramp], 1)
        if not (slope > 0 > offset):
            return None
        high = round(1.0 - 1.0 / float(offset), 3)
    if ramp.any():
        original = float(np.mean((1.0 + kept_R[ramp] * (high - 1.0)) / turns_R[ramp]))
    else:  # between the slowest pair that stays and the fastest that is slowed down in full
        stays, slowed = turns_R[factors_R == 1.0], turns_R[factors_R > 1.0]
        most = 1.0 / slowed.max()
        original = math.sqrt(most * high / stays.min()) if len(stays) else most
    if not (high > 1.0 and 1 <= round(original) <= 1 << 24):
        return None
    return Llama3Scaling(factor=factor, low=1.0, high=high, original=round(original))
