"""A Hugging Face directory and the GGUF file converted from it, with a fault, held together."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
from family_harness import drawn_parameters
from gguf_models import convertible, write_gguf

from lockstep.cli.main import main
from lockstep.families import FAMILIES, write_parameters
from lockstep.formats.hf_directory import write_hf_directory
from lockstep.ir import Array

Tensors = dict[str, Array]
Fault = Callable[[Tensors, Any], Any]
LAYER = "model.layers.1."
# Of these Qwen3.5 models the second layer is attention, and the order of value heads matters.
IN_GROUPS = "untied, biased, value heads in groups"
CONVERTIBLE = ("llama", "qwen2", "qwen3", "gemma3", "qwen35")


def pair(
    folder: Path, family: str, fault: Fault | None, *, square: bool = False,
    stored: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
) -> list[str]:  # fmt: skip
    """A Hugging Face directory and a GGUF file that was converted from it, with a fault.

    `square` makes the output projections of attention so; matrices are `stored` as that type where
    it has blocks of their width.
    """
    found = FAMILIES[family]
    small = found.small_configs.get(IN_GROUPS, found.TINY)
    config = convertible(found, replace(small, width=small.q_width) if square else small)
    hf = write_parameters(found.weights(config), drawn_parameters(found, config), "hf")
    write_hf_directory(folder / "hf", found.to_hf(config), hf)
    converted = dict(hf)
    config = (fault(converted, config) if fault else None) or config
    write_gguf(found, config, folder / "model.gguf", converted, stored=stored)
    return [str(folder / "model.gguf"), str(folder / "hf")]


def compared(names: list[str], capfd: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    """The exit code and the document of a comparison."""
    code = main(["compare", *names, "--tokens=9", "--json"])
    return code, json.loads(capfd.readouterr().out)
