"""Faults of a conversion that a run of some tokens does not show, and what they are called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import converted_pair
import gguf
import numpy as np
import pytest
from converted_pair import CONVERTIBLE, LAYER, Fault, Tensors, compared, pair

from lockstep.families import FAMILIES, Llama3Scaling
from lockstep.ir import Array
from lockstep.proof.row_moves import is_same, row_errors, rows_moved

BF16, Q8_0 = gguf.GGMLQuantizationType.BF16, gguf.GGMLQuantizationType.Q8_0
Q4_0 = gguf.GGMLQuantizationType.Q4_0
DELTA = "model.layers.0.linear_attn."


def changed(name: str, change: Callable[[Array], Array]) -> Fault:
    """A tensor that is not what it was."""

    def fault(tensors: Tensors, config: Any) -> None:
        before = tensors[name]
        tensors[name] = np.ascontiguousarray(change(before), np.float32)
        assert not np.array_equal(before, tensors[name])

    return fault


def q_and_k_exchanged(tensors: Tensors, config: Any) -> None:
    name, n = f"{DELTA}in_proj_qkv.weight", config.keys_width
    q, k, v = np.split(tensors[name], (n, 2 * n))
    tensors[name] = np.concatenate([k, q, v])


def gates_first(tensors: Tensors, config: Any) -> None:
    name = f"{LAYER}self_attn.q_proj.weight"
    halves = tensors[name].reshape(config.heads, 2, config.head_dim, -1)
    tensors[name] = np.ascontiguousarray(halves[:, ::-1].reshape(tensors[name].shape))


def without_head(tensors: Tensors, config: Any) -> None:
    del tensors["lm_head.weight"]


def head_of_embedding(tensors: Tensors, config: Any) -> None:
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]


def two_layers_exchanged(tensors: Tensors, config: Any) -> None:
    for name in [name for name in tensors if name.startswith(LAYER)]:
        other = name.replace(LAYER, "model.layers.0.")
        tensors[name], tensors[other] = tensors[other], tensors[name]


def nan(weight: Array) -> Array:
    return np.where(np.arange(weight.size).reshape(weight.shape) == 7, np.nan, weight)


EMBED, UP = "model.embed_tokens.weight", f"{LAYER}mlp.up_proj.weight"
Q = f"{LAYER}self_attn.q_proj"
NAMED = [
    ("qwen35", q_and_k_exchanged, "layers.0.delta.qkv",
     "rows moved: q (0 to 17) from k (18 to 35)"),
    ("qwen35", gates_first, "layers.1.attn.q",
     "query of head 0 (0 to 7) from gate of head 0 (8 to 15)"),
    ("qwen35", changed(f"{DELTA}conv1d.weight", lambda w: w[..., ::-1]), "layers.0.delta.conv",
     "rows in reverse order"),
    ("qwen35", changed(f"{DELTA}dt_bias", np.zeros_like), "layers.0.delta.gates", "all zeros"),
    ("llama", changed(EMBED, lambda w: np.roll(w, 1, 0)), "embed",
     "rows moved: each from 1 before"),
    ("llama", changed(EMBED, lambda w: w[[*range(87), 88, 87]]), "embed",
     "rows moved: 87 from 88, 88 from 87"),
    ("llama", without_head, "head", "only one of them ties head and embedding"),
    ("llama", head_of_embedding, "head", "that of embed.weight"),
    ("llama", two_layers_exchanged, "layers.0.norm1", "that of layers.1.norm1.weight"),
    ("qwen2", changed(f"{Q}.bias", np.zeros_like), "layers.1.attn.q", "all zeros"),
    ("qwen3", changed(UP, lambda w: w * np.float32(7.5)), "layers.1.ffn.up", "times 7.5"),
    ("qwen3", changed(UP, lambda w: w[:, ::-1]), "layers.1.ffn.up", "columns in reverse order"),
    ("gemma3", changed(EMBED, lambda w: w * np.float32(np.sqrt(48.0))), "embed", "times 6.928"),
    ("gemma3", changed(f"{LAYER}self_attn.v_proj.weight", nan), "layers.1.attn.v", "not finite"),
    ("gemma3", changed(UP, lambda w: w * (np.arange(len(w)) != 3)[:, None]), "layers.1.ffn.up",
     "in 1 of 88 rows, the first is 3"),
]  # fmt: skip


@pytest.mark.parametrize(("family", "fault", "node", "why"), NAMED)
def test_a_fault_is_named_with_its_place(
    family: str, fault: Fault, node: str, why: str, tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    code, found = compared(pair(tmp_path, family, fault), capfd)
    guilty = found["comparison"]["first_guilty"]
    assert (code, guilty["id"]) == (1, node)
    assert why in guilty["why"]


@pytest.mark.parametrize(
    ("name", "change", "node"),
    [
        # A fiftieth of one bias is less than what BF16 may lose of the whole product.
        (f"{LAYER}self_attn.k_proj.bias", lambda b: b * (1 - 0.02 * (np.arange(len(b)) == 3)),
         "layers.1.attn.k"),
        # No token of these reads the row.
        (EMBED, lambda w: np.concatenate([w[:-1], w[-1:] * 1.5]), "embed"),
    ],
)  # fmt: skip
def test_a_fault_that_rounding_would_hide_is_found(
    name: str, change: Callable[[Array], Array], node: str, tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    code, found = compared(pair(tmp_path, "qwen2", changed(name, change), stored=BF16), capfd)
    guilty = found["comparison"]["first_guilty"]
    row = next(row for row in found["comparison"]["nodes"] if row["id"] == node)
    assert (code, guilty["id"]) == (1, node)
    assert row["local_error"] <= row["bound"], "its result alone would not have told"


@pytest.mark.torch
@pytest.mark.parametrize("stored", [BF16, Q8_0])
@pytest.mark.parametrize("family", CONVERTIBLE)
def test_rounding_is_no_fault(
    family: str, stored: gguf.GGMLQuantizationType, tmp_path: Path,
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    found = FAMILIES[family]
    wide = replace(found, TINY=replace(found.TINY, width=96, ffn=128), variants={})
    monkeypatch.setitem(FAMILIES, family, wide)
    code, said = compared(pair(tmp_path, family, None, stored=stored), capfd)
    assert code == 0, said["comparison"]["first_guilty"]


@pytest.mark.torch
def test_settings_of_rope_that_turn_alike_are_no_fault(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """GGUF keeps factors of rope, which other settings give as well."""
    found = FAMILIES["llama"]
    scaling = Llama3Scaling(factor=16.0, low=2.0, high=8.0, original=64)
    config = replace(found.TINY, theta=5e5, head_dim=32, scaling=scaling)
    monkeypatch.setitem(FAMILIES, "llama", replace(found, TINY=config, variants={}))
    assert compared(pair(tmp_path / "right", "llama", None), capfd)[0] == 0
    slower = replace(config, scaling=replace(scaling, factor=17.0))
    files = pair(tmp_path / "wrong", "llama", lambda tensors, config: slower)
    code, said = compared(files, capfd)
    assert (code, said["comparison"]["first_guilty"]["id"]) == (1, "rope")


@pytest.mark.torch
def test_one_damaged_block_of_a_long_row_is_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block in 32 is less than what a row of four bits may lose."""

    def without_block(weight: Array) -> Array:
        damaged = weight.copy()
        damaged[3, 5 * 32 : 6 * 32] = 0.0
        return damaged

    found = FAMILIES["llama"]
    long = replace(found, TINY=replace(found.TINY, ffn=1024), variants={})
    monkeypatch.setitem(FAMILIES, "llama", long)
    code, said = compared(pair(tmp_path / "right", "llama", None, stored=Q4_0), capfd)
    assert code == 0, said["comparison"]["first_guilty"]
    fault = changed(f"{LAYER}mlp.down_proj.weight", without_block)
    code, said = compared(pair(tmp_path / "wrong", "llama", fault, stored=Q4_0), capfd)
    guilty = said["comparison"]["first_guilty"]
    assert (code, guilty["id"]) == (1, "layers.1.ffn.down")
    assert "in 1 of its blocks of 32, the first is block 5 of row 3" in guilty["why"]


def test_rows_are_found_where_they_went() -> None:
    draw = np.random.default_rng(1)
    rows = draw.standard_normal((300, 40)).astype(np.float32)
    order = draw.permutation(300)
    assert is_same(rows, rows, 0.0)
    assert rows_moved(rows, rows, 0.0) is None
    assert rows_moved(rows + 1, rows, 0.01) is None
    found = rows_moved(rows[order], rows, 0.0)
    assert found is not None
    assert found.startswith(f"moved: 0 from {order[0]}, 1 from {order[1]}, ")
    rough = rows[order] + 0.05 * draw.standard_normal(rows.shape).astype(np.float32)
    assert rows_moved(rough, rows, 0.1) == found
    many = draw.standard_normal((300_000, 3)).astype(np.float32)
    assert rows_moved(np.roll(many, 5, 0), many, 0.0) == "moved: each from 5 before"


def test_a_quiet_row_is_measured_by_the_whole() -> None:
    rows = np.ones((3, 4), np.float32)
    rows[1] = 1e-9
    other = rows.copy()
    other[1] = 2e-9
    assert row_errors(other, rows).max() < 1e-6
    other[1] = np.nan
    assert not is_same(other, rows, 1.0)


@pytest.mark.torch
def test_an_original_that_transformers_does_not_take_is_said(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = FAMILIES["llama"]
    config = replace(found.TINY, width=64)  # which is no multiple of the heads
    monkeypatch.setitem(FAMILIES, "llama", replace(found, TINY=config, variants={}))
    code, said = compared(pair(tmp_path, "llama", None), capfd)
    assert (code, said["original_beside"]["verdict"]) == (0, "missing")
    assert "not a multiple of the number of attention heads" in said["original_beside"]["reason"]


def test_blocks_of_a_small_weight_are_not_taken_for_zeros(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(tensors: Tensors, config: Any) -> None:
        up, gate = UP, f"{LAYER}mlp.gate_proj.weight"
        tensors[up], tensors[gate] = tensors[gate], tensors[up]

    found = FAMILIES["qwen3"]
    wide = replace(found, TINY=replace(found.TINY, width=96, ffn=128), variants={})
    monkeypatch.setitem(FAMILIES, "qwen3", wide)
    drawn = converted_pair.drawn_parameters

    def small(family: Any, config: Any) -> dict[str, Array]:
        return {id: w * np.float32(0.01) for id, w in drawn(family, config).items()}

    monkeypatch.setattr(converted_pair, "drawn_parameters", small)
    code, said = compared(pair(tmp_path, "qwen3", fault, stored=Q8_0), capfd)
    assert code == 1
    assert "that of layers.1.ffn.up.weight" in said["comparison"]["first_guilty"]["why"]
