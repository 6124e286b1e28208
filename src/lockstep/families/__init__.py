"""Architectures: one file each, named after what GGUF and Hugging Face call them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lockstep.errors import InputError, UsageError
from lockstep.families import llama, qwen3
from lockstep.families.decoder import DecoderConfig
from lockstep.families.family import Family
from lockstep.families.rope import LinearScaling, Llama3Scaling, YarnScaling
from lockstep.families.source import TensorSource
from lockstep.families.weight import Parameters, Weight, read_parameters, write_parameters

FAMILIES: Mapping[str, Family[Any]] = {f.name: f for f in (qwen3.FAMILY, llama.FAMILY)}

__all__ = [
    "FAMILIES",
    "DecoderConfig",
    "Family",
    "LinearScaling",
    "Llama3Scaling",
    "Parameters",
    "TensorSource",
    "Weight",
    "YarnScaling",
    "family_named",
    "family_of_hf",
    "read_parameters",
    "write_parameters",
]


def family_named(name: str) -> Family[Any]:
    """The family with this name.

    Raises: UsageError with the names that exist.
    """
    if name not in FAMILIES:
        raise UsageError(
            f"family: expected one of {', '.join(FAMILIES)}, got {name!r}",
            hint="choose one of these names",
        )
    return FAMILIES[name]


def family_of_hf(config: Mapping[str, object]) -> Family[Any]:
    """The family that a Hugging Face config names.

    Raises: InputError if none of ours does.
    """
    name = config.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise InputError(
            f"config.json model_type: expected one of {', '.join(FAMILIES)}, got {name!r:.60}",
            hint="choose a model of one of these families",
        )
    return FAMILIES[name]
