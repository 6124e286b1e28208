"""The ways in which config.json spells windows, kinds of layers and rope: run right, or refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from converted_pair import compared
from family_harness import drawn_parameters

from lockstep.cli.main import main
from lockstep.families import FAMILIES, write_parameters
from lockstep.formats.hf_directory import write_hf_directory

FULL, LOCAL, DELTA = "full_attention", "sliding_attention", "linear_attention"
ABSENT = object()
SIZES: dict[str, dict[str, Any]] = {
    "qwen2": {"layers": 4},
    "qwen3": {"layers": 4},
    "llama": {"layers": 1},
    "gemma3": {"layers": 4, "window": 5, "period": 2},
    "qwen35": {"layers": 4, "interval": 2},
}
ON = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 10}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 36}  # fmt: skip
PLAIN = {"rope_type": "default", "rope_theta": 500.0}
SECTIONS = {**PLAIN, "partial_rotary_factor": 0.5, "mrope_section": [1, 1, 1],
            "mrope_interleaved": True}  # fmt: skip

Change = Mapping[str, Any]
WINDOWS_RUN: list[Change] = [
    ON,
    {**ON, "max_window_layers": 0},
    {**ON, "max_window_layers": 9},
    {**ON, "layer_types": [FULL, FULL, LOCAL, LOCAL]},
    {**ON, "max_window_layers": 1, "layer_types": [FULL, FULL, LOCAL, LOCAL]},
    {**ON, "layer_types": [LOCAL] * 4},
    {**ON, "layer_types": [FULL] * 4},
    {**ON, "max_window_layers": ABSENT},
    {**ON, "sliding_window": ABSENT},
    {**ON, "sliding_window": None},
    {**ON, "use_sliding_window": False},
    {**ON, "use_sliding_window": ABSENT},
]
WINDOWS_REFUSED: list[tuple[Change, str]] = [
    ({**ON, "layer_types": [FULL, LOCAL] * 2}, "layer_types"),
    ({**ON, "layer_types": [LOCAL, LOCAL, FULL, FULL]}, "layer_types"),
    ({**ON, "layer_types": [FULL, FULL, LOCAL]}, "layer_types"),
    ({**ON, "layer_types": ["chunked_attention"] * 4}, "layer_types"),
    ({**ON, "use_sliding_window": False, "layer_types": [FULL, FULL, LOCAL, LOCAL]}, "layer_types"),
    ({**ON, "sliding_window": None, "layer_types": [FULL, FULL, LOCAL, LOCAL]}, "layer_types"),
    ({**ON, "sliding_window": 0}, "sliding_window"),
]
ROPE_RUN: list[Change] = [
    {"rope_theta": ABSENT},
    {"rope_theta": ABSENT, "rope_parameters": PLAIN},
    {"rope_theta": 500.0, "rope_parameters": {"rope_type": "default"}},
    {"rope_scaling": {"type": "linear", "factor": 4.0}},
    {"rope_scaling": {**YARN, "type": "linear"}},
    {"rope_scaling": YARN},
    {"rope_theta": ABSENT, "rope_parameters": {**YARN, "rope_theta": 500.0}},
    {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
    {"rope_scaling": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.0}},
    {"rope_theta": 500.0, "rope_scaling": LLAMA3},
    {"rope_theta": ABSENT, "rope_parameters": {**LLAMA3, "rope_theta": 500.0}},
]
ROPE_REFUSED: list[tuple[Change, str]] = [
    ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type"),
    ({"rope_theta": 400.0, "rope_parameters": PLAIN}, "rope_theta"),
    ({"rope_scaling": YARN, "rope_parameters": PLAIN}, "got both"),
    ({"rope_parameters": {FULL: PLAIN}}, FULL),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
]
BY_KIND = {"rope_theta": ABSENT, "rope_local_base_freq": ABSENT}
STRETCHED = {"rope_type": "linear", "factor": 8.0, "rope_theta": 500.0}
LISTED = [LOCAL, FULL] * 2
GEMMA_RUN: list[Change] = [
    {"layer_types": ABSENT},
    {"layer_types": ABSENT, "sliding_window_pattern": 3},
    {"layer_types": ABSENT, "sliding_window_pattern": ABSENT},
    {"layer_types": ABSENT, "sliding_window_pattern": 3, "_sliding_window_pattern": 3},
    {"layer_types": LISTED, "sliding_window_pattern": ABSENT, "_sliding_window_pattern": 6},
    {"layer_types": LISTED, "sliding_window_pattern": 3},
    {"layer_types": [FULL] * 4},
    {"layer_types": [LOCAL] * 4},
    {"rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    {**BY_KIND, "rope_parameters": {FULL: STRETCHED, LOCAL: {**PLAIN, "rope_theta": 50.0}}},
    {**BY_KIND, "rope_parameters": {FULL: STRETCHED}},
    {**BY_KIND, "rope_parameters": {LOCAL: PLAIN}},
    {"rope_parameters": {FULL: {"rope_type": "default"}, LOCAL: PLAIN}},
]
GEMMA_REFUSED: list[tuple[Change, str]] = [
    ({"layer_types": [FULL, LOCAL] * 2}, "layer_types"),
    ({"layer_types": [LOCAL, LOCAL, FULL, FULL]}, "layer_types"),
    ({"layer_types": [LOCAL, FULL, LOCAL]}, "layer_types"),
    (
        {"layer_types": ABSENT, "sliding_window_pattern": ABSENT, "_sliding_window_pattern": 2},
        "_sliding_window_pattern",
    ),
    ({"rope_scaling": {"type": "linear", "factor": 8.0}}, "rope_scaling"),
    ({"rope_parameters": {FULL: PLAIN, LOCAL: STRETCHED}}, LOCAL),
    ({"rope_parameters": STRETCHED}, "rope_parameters"),
    ({"sliding_window": None}, "sliding_window"),
]
DELTA_RUN: list[Change] = [
    {"layer_types": ABSENT},
    {"full_attention_interval": ABSENT},
    {"full_attention_interval": 4},
    {"rope_parameters": SECTIONS},
    {"rope_parameters": {**SECTIONS, "mrope_section": [0, 2, 1]}},
    {"rope_parameters": {**SECTIONS, **YARN}},
    {"rope_parameters": ABSENT, "rope_theta": 500.0, "partial_rotary_factor": 0.5},
]
DELTA_REFUSED: list[tuple[Change, str]] = [
    ({"layer_types": [FULL, DELTA] * 2}, "layer_types"),
    ({"layer_types": [DELTA, FULL, FULL, DELTA]}, "layer_types"),
    ({"layer_types": [DELTA, FULL, DELTA]}, "layer_types"),
]
QWENS = ("qwen2", "qwen3")
RUN: list[tuple[str, Change]] = [
    *((name, change) for name in QWENS for change in WINDOWS_RUN),
    *((name, change) for name in ("qwen3", "llama") for change in ROPE_RUN),
    *(("gemma3", change) for change in GEMMA_RUN),
    *(("qwen35", change) for change in DELTA_RUN),
]
REFUSED: list[tuple[str, Change, str]] = [
    *((name, *case) for name in QWENS for case in WINDOWS_REFUSED),
    *((name, *case) for name in ("qwen3", "llama") for case in ROPE_REFUSED),
    *(("gemma3", *case) for case in GEMMA_REFUSED),
    *(("qwen35", *case) for case in DELTA_REFUSED),
]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, Any]]]:
    """For each family a directory with its weights, and the config that they were drawn for."""
    found = {}
    for name, sizes in SIZES.items():
        family = FAMILIES[name]
        config = replace(family.TINY, **sizes)
        tensors = write_parameters(family.weights(config), drawn_parameters(family, config), "hf")
        path = tmp_path_factory.mktemp(name) / "hf"
        write_hf_directory(path, family.to_hf(config), tensors)
        found[name] = path, family.to_hf(config)
    return found


def spelled(written: tuple[Path, dict[str, Any]], change: Change) -> str:
    """The directory with its config changed."""
    path, config = written
    changed = {k: v for k, v in {**config, **change}.items() if v is not ABSENT}
    (path / "config.json").write_text(json.dumps(changed))
    return str(path)


@pytest.mark.torch
@pytest.mark.parametrize(("name", "change"), RUN)
def test_a_config_that_is_run_means_what_transformers_makes_of_it(
    name: str, change: Change, written: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    path = spelled(written[name], change)
    code, found = compared([path, path], capfd)
    assert found["original_beside"]["verdict"] == "pass", found["original_beside"]
    assert code == 0


@pytest.mark.parametrize(("name", "change", "key"), REFUSED)
def test_a_config_that_is_not_run_is_refused_by_name(
    name: str, change: Change, key: str, written: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    path = spelled(written[name], change)
    assert main(["run", path, "--raw", "-p", "a"]) == 4
    assert key in capfd.readouterr().err
