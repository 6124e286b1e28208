"""`lockstep compare MODEL ORIGINAL`: a faithful conversion passes, a planted fault is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from converted_pair import CONVERTIBLE, IN_GROUPS, LAYER, Tensors, compared, pair

from lockstep.cli.main import main
from lockstep.engine.export_gguf import gguf_tensors
from lockstep.engine.source import open_source
from lockstep.families import FAMILIES
from lockstep.families.form import join_pairs
from lockstep.formats.gguf_write import write_gguf

BEYOND_ONE = ("gemma3", "qwen35")  # whose gains are 1 + w in Hugging Face


def swapped(a: str, b: str) -> Callable[[Tensors, Any], None]:
    def swap(tensors: Tensors, _: Any) -> None:
        tensors[a], tensors[b] = tensors[b], tensors[a]

    return swap


def transposed(tensors: Tensors, config: Any) -> None:
    name = f"{LAYER}self_attn.o_proj.weight"
    assert tensors[name].shape[0] == tensors[name].shape[1], "or the shape would tell"
    tensors[name] = np.ascontiguousarray(tensors[name].T)


def left_in_pairs(tensors: Tensors, config: Any) -> None:
    name = f"{LAYER}self_attn.q_proj.weight"
    tensors[name] = join_pairs(tensors[name], config.heads)


def another_theta(tensors: Tensors, config: Any) -> Any:
    return replace(config, theta=500.0)


def beyond_one(config: Any) -> bool:
    return any(isinstance(config, FAMILIES[name].Config) for name in BEYOND_ONE)


def unscaled(tensors: Tensors, config: Any) -> None:
    name = f"{LAYER}input_layernorm.weight"
    tensors[name] = np.full_like(tensors[name], float(not beyond_one(config)))


FAULTS = {
    "gate and up": (
        swapped(f"{LAYER}mlp.gate_proj.weight", f"{LAYER}mlp.up_proj.weight"),
        "layers.1.ffn.gate", "that of layers.1.ffn.up.weight",
    ),
    "rope order": (left_in_pairs, "layers.1.attn.q", "rows in pairs"),
    "rope base": (another_theta, "rope", "theta is 500.0"),
    "norms": (
        swapped(f"{LAYER}input_layernorm.weight", f"{LAYER}post_attention_layernorm.weight"),
        "layers.1.norm1", "that of layers.1.",
    ),
    "scale": (unscaled, "layers.1.norm1", "scale is missing"),
}  # fmt: skip


def without_its_one(tensors: Tensors, config: Any) -> None:
    tensors[f"{LAYER}input_layernorm.weight"] -= np.float32(1.0)


def left_in_groups(tensors: Tensors, config: Any) -> None:
    """The tiling of value heads is undone before it is done."""
    name = "model.layers.0.linear_attn.in_proj_z.weight"
    split = (config.value_heads // config.key_heads, config.key_heads, config.value_width)
    heads = tensors[name].reshape(*split, -1).swapaxes(0, 1)
    tensors[name] = np.ascontiguousarray(heads.reshape(tensors[name].shape))


@pytest.mark.torch
@pytest.mark.parametrize("family", CONVERTIBLE)
def test_a_faithful_conversion_passes(
    family: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, found = compared(pair(tmp_path, family, None), capfd)
    assert code == 0, found
    assert found["comparison"]["nodes_compared"] > 20
    assert all(row["local_error"] <= row["bound"] for row in found["comparison"]["nodes"])
    assert found["original_beside"]["verdict"] == "pass"


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("family", CONVERTIBLE)
def test_a_planted_fault_is_named_by_its_node(
    family: str, fault: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    plant, node, why = FAULTS[fault]
    code, found = compared(pair(tmp_path, family, plant), capfd)
    assert code == 1
    guilty = found["comparison"]["first_guilty"]
    assert guilty["id"].startswith(node), guilty
    assert why in guilty["why"]


@pytest.mark.slow
@pytest.mark.parametrize("stored", [gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_0])
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("family", CONVERTIBLE)
def test_a_fault_is_named_under_quantised_weights(
    family: str, fault: str, stored: gguf.GGMLQuantizationType, tmp_path: Path,
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    found = FAMILIES[family]
    small = found.small_configs.get(IN_GROUPS, found.TINY)
    wide = replace(small, width=96, ffn=128)  # whole blocks
    monkeypatch.setitem(FAMILIES, family, replace(found, TINY=wide, variants={}))
    plant, node, why = FAULTS[fault]
    code, said = compared(pair(tmp_path, family, plant, stored=stored), capfd)
    guilty = said["comparison"]["first_guilty"]
    assert code == 1
    assert guilty["id"].startswith(node), guilty
    assert why in guilty["why"]


@pytest.mark.parametrize("family", BEYOND_ONE)
def test_a_gain_whose_one_was_forgotten_is_named(
    family: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, found = compared(pair(tmp_path, family, without_its_one), capfd)
    guilty = found["comparison"]["first_guilty"]
    assert (code, guilty["id"]) == (1, "layers.1.norm1")
    assert "the original less one" in guilty["why"]


def test_value_heads_that_were_not_reordered_are_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, found = compared(pair(tmp_path, "qwen35", left_in_groups), capfd)
    guilty = found["comparison"]["first_guilty"]
    assert (code, guilty["id"]) == (1, "layers.0.delta.z")
    assert "value heads as Hugging Face orders them" in guilty["why"]


@pytest.mark.parametrize("family", CONVERTIBLE)
def test_a_transposed_square_projection_is_named(
    family: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert compared(pair(tmp_path / "right", family, None, square=True), capfd)[0] == 0
    code, found = compared(pair(tmp_path / "wrong", family, transposed, square=True), capfd)
    assert code == 1
    assert found["comparison"]["first_guilty"]["id"] == "layers.1.attn.o"
    assert "transposed" in found["comparison"]["first_guilty"]["why"]


@pytest.mark.parametrize(
    ("family", "setting", "right", "wrong", "node"),
    [
        ("gemma3", "window", 30, 25, "layers.0.attn.core"),  # both longer than the tokens
        ("qwen35", "rotary", 4, 8, "rope"),  # the tables of angles have other shapes
    ],
)
def test_a_setting_that_these_tokens_cannot_show_is_named(
    family: str, setting: str, right: int, wrong: int, node: str, tmp_path: Path,
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    found = FAMILIES[family]
    right_config = replace(found.TINY, **{setting: right})
    changed = replace(found, TINY=right_config, variants={})  # type: ignore[arg-type]
    monkeypatch.setitem(FAMILIES, family, changed)
    files = pair(tmp_path, family, lambda tensors, config: replace(config, **{setting: wrong}))
    code, said = compared(files, capfd)
    guilty = said["comparison"]["first_guilty"]
    assert (code, guilty["id"]) == (1, node)
    assert f"is {wrong}, not {right}" in guilty["why"]


def another_context(tensors: Tensors, config: Any) -> Any:
    return replace(config, context=20)


def one_layer_less(tensors: Tensors, config: Any) -> Any:
    last = f"model.layers.{config.layers - 1}."
    for name in [name for name in tensors if name.startswith(last)]:
        del tensors[name]
    return replace(config, layers=config.layers - 1)


def without_a_tensor(tensors: Tensors, _: Any) -> None:
    del tensors[f"{LAYER}mlp.up_proj.weight"]


@pytest.mark.parametrize("tokens", [["--tokens=9"], []])
def test_another_context_is_named(
    tokens: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    files = pair(tmp_path, "qwen3", another_context)
    assert main(["compare", *files, *tokens]) == 1
    out = capfd.readouterr().out
    assert "context_length: 20, not 40" in out
    assert "no guilty node" in out


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (one_layer_less, "layers: {less} against {layers}"),
        (without_a_tensor, "blk.1.ffn_up.weight: missing"),
    ],
)
@pytest.mark.parametrize("family", CONVERTIBLE)
def test_what_a_conversion_lost_is_a_finding(
    family: str, fault: Any, why: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    files = pair(tmp_path, family, fault)
    layers = open_source(files[1]).model.config.layers
    assert main(["compare", *files]) == 1
    assert why.format(layers=layers, less=layers - 1) in capfd.readouterr().err
    assert main(["compare", *reversed(files)]) == (1 if fault is one_layer_less else 4)


def test_a_layer_that_is_not_counted_is_a_finding(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    original = Path(pair(tmp_path, "qwen3", None)[1])
    less = shutil.copytree(original, tmp_path / "less")
    config = json.loads((less / "config.json").read_text())
    config["num_hidden_layers"] -= 1
    (less / "config.json").write_text(json.dumps(config))
    assert main(["compare", str(less), str(original)]) == 1
    assert f"{LAYER}mlp.up_proj.weight: not a tensor of this model" in capfd.readouterr().err


def exported(folder: Path, family: str, changes: dict[str, int]) -> list[str]:
    """A file that states all settings, with some of them changed, and what it was made from."""
    original = pair(folder, family, None)[1]
    path, source = folder / "stated.gguf", open_source(original)
    settings = source.model.family.to_gguf(source.model.config)
    write_gguf(path, {**settings, **changes}, gguf_tensors(source, "F32"))
    return [str(path), original]


MISSTATED = ("rope.dimension_count", "attention.value_length", "attention.key_length",
             "attention.head_count_kv", "block_count", "embedding_length",
             "feed_forward_length")  # fmt: skip


@pytest.mark.parametrize("key", MISSTATED)
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_a_setting_that_nothing_can_run_is_named(
    family: str, key: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *exported(tmp_path, family, {f"{family}.{key}": 7})]) == 1
    assert f"{family}.{key}: 7, not " in capfd.readouterr().err


def test_all_settings_that_a_conversion_misstates_are_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    changes = {"llama.rope.dimension_count": 2, "llama.context_length": 20}
    assert main(["compare", *exported(tmp_path, "llama", changes)]) == 1
    err = capfd.readouterr().err
    assert "llama.rope.dimension_count: 2, not 12" in err
    assert "llama.context_length: 20, not 40" in err


def test_what_nothing_can_read_is_no_finding(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    left, right = exported(tmp_path, "llama", {})
    whole = Path(left).read_bytes()
    Path(left).write_bytes(whole[: len(whole) // 2])
    assert main(["compare", left, right]) == 4
    capfd.readouterr()
    missing = str(tmp_path / "none.gguf")
    assert main(["compare", missing, right]) == 4
    assert "found none" in capfd.readouterr().err


def test_models_of_two_families_are_not_compared(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    left = pair(tmp_path / "a", "qwen3", None)[0]
    right = pair(tmp_path / "b", "llama", None)[1]
    assert main(["compare", left, right]) == 2
    assert "one family" in capfd.readouterr().err


@pytest.mark.torch
def test_an_original_that_transformers_cannot_open_was_not_asked(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    def refuse(*_: object, **__: object) -> None:
        raise AttributeError("no such rope")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", refuse)
    _, found = compared(pair(tmp_path, "qwen3", None), capfd)
    assert found["original_beside"]["verdict"] == "missing"
    assert "no such rope" in found["original_beside"]["reason"]
