"""Architectures: one file each, named after what GGUF and Hugging Face call them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lockstep.errors import InputError, UsageError
from lockstep.families import gemma3, llama, qwen2, qwen3, qwen35
from lockstep.families.decoder import DecoderConfig
from lockstep.families.family import Family
from lockstep.families.rope import LinearScaling, Llama3Scaling, YarnScaling
from lockstep.families.source import TensorSource
from lockstep.families.weight import Parameters, Weight, read_parameters, write_parameters

FAMILIES: Mapping[str, Family[Any]] = {
    f.name: f for f in (qwen3.FAMILY, llama.FAMILY, qwen2.FAMILY, gemma3.FAMILY, qwen35.FAMILY)
}

_OF_HF = {kind: f for f in FAMILIES.values() for kind in f.hf_types or (f.name,)}

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
    "family_of_gguf",
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
    return _known(_OF_HF, "config.json model_type", config.get("model_type"))


def family_of_gguf(metadata: Mapping[str, object]) -> Family[Any]:
    """The family that the metadata of a GGUF file names.

    Raises: InputError if none of ours does.
    """
    return _known(FAMILIES, "gguf general.architecture", metadata.get("general.architecture"))


def _known(families: Mapping[str, Family[Any]], where: str, name: object) -> Family[Any]:
    if not isinstance(name, str) or name not in families:
        raise InputError(
            f"{where}: expected one of {', '.join(families)}, got {name!r:.60}",
            hint="choose a model of one of these families",
        )
    return families[name]
