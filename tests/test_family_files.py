"""Weights and metadata of every family: read strictly, in the names and the order of others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from family_harness import EVERY_CONFIG, Held, drawn_parameters
from gguf_models import convertible, llama3_factors, write_gguf
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.errors import InputError
from lockstep.families import (
    FAMILIES,
    Family,
    Llama3Scaling,
    family_of_gguf,
    read_parameters,
    write_parameters,
)
from lockstep.families.form import AS_IS, join_pairs, split_pairs
from lockstep.families.rope_config import llama3_of_factors
from lockstep.formats import GGUFFile, HFDirectory, write_hf_directory


def hf_source(family: Family[Any], config: Any) -> Held:
    table = family.weights(config)
    return Held(write_parameters(table, drawn_parameters(family, config), "hf"))


@pytest.mark.parametrize(("family", "config"), EVERY_CONFIG)
def test_parameters_survive_a_hugging_face_directory(
    family: Family[Any], config: Any, tmp_path: Path
) -> None:
    parameters = drawn_parameters(family, config)
    tensors = write_parameters(family.weights(config), parameters, "hf")
    write_hf_directory(tmp_path / "model", family.to_hf(config), tensors)
    read = HFDirectory(tmp_path / "model")
    assert family.from_hf(read.config) == config
    back = family.hf_parameters(config, read)
    assert list(back) == [w.id for w in family.weights(config)]
    assert all(back[id].tobytes() == parameters[id].tobytes() for id in parameters)


@pytest.mark.parametrize(("family", "config"), EVERY_CONFIG)
def test_a_checkpoint_that_does_not_fit_is_refused_with_every_name(
    family: Family[Any], config: Any
) -> None:
    source = hf_source(family, config)
    names = list(source.tensors)
    missing, wrong, bad = names[1], names[2], names[3]
    changed = {n: a for n, a in source.tensors.items() if n != missing}
    changed[wrong] = changed[wrong].T[..., None]
    changed["model.layers.7.extra"] = changed[bad]
    with pytest.raises(InputError) as refused:
        family.hf_parameters(config, Held(changed))
    for line in (
        f"{missing}: missing",
        f"{wrong}: expected shape",
        "model.layers.7.extra: not a tensor",
    ):
        assert line in refused.value.message
    changed = dict(source.tensors)
    changed[bad] = np.full_like(changed[bad], np.nan)
    with pytest.raises(InputError, match=f"{bad}: not finite"):
        family.hf_parameters(config, Held(changed))


def test_a_stored_copy_of_a_tied_head_must_be_a_copy() -> None:
    family = FAMILIES["qwen3"]
    source = hf_source(family, family.TINY)
    embedding = source.tensors["model.embed_tokens.weight"]
    with_copy = Held({**source.tensors, "lm_head.weight": embedding.copy()})
    assert len(family.hf_parameters(family.TINY, with_copy)) == len(family.weights(family.TINY))
    other = Held({**source.tensors, "lm_head.weight": embedding + 1})
    with pytest.raises(InputError, match=r"lm_head\.weight: expected a copy"):
        family.hf_parameters(family.TINY, other)
    one_by_one = family.parameters(family.TINY, other, "hf")
    for read in (one_by_one.f32, one_by_one.rows):
        assert len(read("layers.0.attn.q.weight"))
        with pytest.raises(InputError, match=r"lm_head\.weight: expected a copy"):
            read("embed.weight")
    untied = replace(family.TINY, tied=False)
    with pytest.raises(InputError, match=r"lm_head\.weight: missing"):
        family.hf_parameters(untied, source)


@pytest.mark.parametrize(("family", "config"), EVERY_CONFIG)
def test_a_converted_model_is_the_model_of_its_directory(
    family: Family[Any], config: Any, tmp_path: Path
) -> None:
    config = convertible(family, config)
    parameters = drawn_parameters(family, config)
    hf = write_parameters(family.weights(config), parameters, "hf")
    write_gguf(family, config, tmp_path / "model.gguf", hf)
    file = GGUFFile(tmp_path / "model.gguf")
    assert family_of_gguf(file.metadata) is family
    assert family.from_gguf(file.metadata, file) == config
    back = family.gguf_parameters(config, file)
    assert list(back) == [w.id for w in family.weights(config)]
    assert all(back[id].tobytes() == parameters[id].tobytes() for id in parameters)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_metadata_that_we_cannot_carry_out_is_refused_by_name(
    family: Family[Any], tmp_path: Path
) -> None:
    config, arch = convertible(family, family.TINY), family.name
    hf = write_parameters(family.weights(config), drawn_parameters(family, config), "hf")
    write_gguf(family, config, tmp_path / "model.gguf", hf)
    file = GGUFFile(tmp_path / "model.gguf")
    for key, value, says in (
        ("expert_count", 8, "expert_count"),
        ("rope.scaling.type", "longrope", r"rope\.scaling\.type: expected .* got 'longrope'"),
        ("rope.scaling.attn_factor", 2.0, r"attn_factor: expected 1\.0, got 2\.0"),
        ("attention.causal", False, "causal: expected True"),
        ("embedding_length", 7, f"embedding_length: expected {config.width}, got 7"),
        ("context_length", None, "expected a key .*context_length"),
        ("block_count", 2.0, "block_count: expected int"),
    ):
        with pytest.raises(InputError, match=says):
            family.from_gguf({**file.metadata, f"{arch}.{key}": value}, file)
    with pytest.raises(InputError, match=r"general\.architecture"):
        family.from_gguf({**file.metadata, "general.architecture": "bert"}, file)


@pytest.mark.parametrize("theta", [1e4, 5e5])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize(
    "scaling",
    [
        Llama3Scaling(factor=8.0, low=1.0, high=4.0, original=8192),
        Llama3Scaling(factor=32.0, low=1.0, high=4.0, original=8192),
        Llama3Scaling(factor=2.5, low=1.0, high=2.5, original=4096),
    ],
    ids=lambda s: f"{s.factor}-{s.high}",
)
def test_the_factors_of_rope_show_the_scaling(
    scaling: Llama3Scaling, theta: float, head_dim: int
) -> None:
    factors_R = llama3_factors(scaling, theta, head_dim)
    found = llama3_of_factors(factors_R, theta, "f")
    assert found is not None
    assert (found.factor, found.low, found.high) == (scaling.factor, 1.0, scaling.high)
    assert found.original == scaling.original
    for wrong in (factors_R[::-1], factors_R * 1.01, factors_R * np.nan, -factors_R):
        with pytest.raises(InputError, match="f: expected factors by which Llama 3"):
            llama3_of_factors(wrong, theta, "f")
    assert llama3_of_factors(np.ones(head_dim // 2), theta, "f") is None


def test_factors_of_rope_that_contradict_the_metadata_are_refused(tmp_path: Path) -> None:
    family = FAMILIES["llama"]
    config = family.variants["stretched evenly"]
    tensors = {"token_embd.weight": np.zeros((config.vocab, config.width), np.float32)}
    hf = write_parameters(family.weights(config), drawn_parameters(family, config), "hf")
    write_gguf(family, config, tmp_path / "model.gguf", hf)
    metadata = GGUFFile(tmp_path / "model.gguf").metadata
    for n_factors in (config.head_dim // 2, 3):
        held = Held({**tensors, "rope_freqs.weight": np.ones(n_factors, np.float32)})
        with pytest.raises(InputError, match=r"rope_freqs\.weight: expected one factor for each"):
            family.from_gguf(metadata, held)


@pytest.mark.parametrize(
    ("before", "after"),
    [("language_model.model.", "language_model."), ("model.language_model.", "")],
)
def test_the_text_model_is_found_in_one_that_sees(before: str, after: str) -> None:
    family = FAMILIES["gemma3"]
    config = family.variants["untied, biased, stretched"]
    plain = hf_source(family, config).tensors
    seeing = {
        name.replace("model.", before) if name.startswith("model.") else f"{after}{name}": array
        for name, array in plain.items()
    }
    sight = {"vision_tower.patch.weight": np.ones(3), "multi_modal_projector.weight": np.ones(2)}
    back = family.hf_parameters(config, Held({**seeing, **sight}))
    wanted = family.hf_parameters(config, Held(plain))
    assert all(back[id].tobytes() == wanted[id].tobytes() for id in wanted)
    twice = {**seeing, "model.norm.weight": plain["model.norm.weight"]}
    with pytest.raises(InputError, match=r"expected model\.norm\.weight once, got it as"):
        family.hf_parameters(config, Held(twice))


def test_rows_as_they_are_stored_come_in_our_order(tmp_path: Path) -> None:
    family = FAMILIES["llama"]
    config = replace(family.TINY, width=64, ffn=96, head_dim=16, heads=4, kv_heads=2)
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    kind = gguf.GGMLQuantizationType.Q8_0
    for weight in family.weights(config):
        array = rng.standard_normal(weight.shape).astype(np.float32)
        if weight.decay:
            writer.add_tensor(weight.gguf, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(weight.gguf, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    held = family.parameters(config, GGUFFile(tmp_path / "model.gguf"), "gguf")
    moved = 0
    for id, weight in held.items():
        assert held.has_rows(id) == weight.decay
        if weight.decay:
            assert held.stored(id) == "Q8_0"
            rows = gguf.quants.dequantize(np.ascontiguousarray(held.rows(id)), kind)
            assert rows.tobytes() == held.f32(id).tobytes()
            moved += int(weight.gguf_form != AS_IS)
    assert moved == 2 * config.layers


def test_a_gain_less_one_has_no_rows_of_its_own() -> None:
    family = FAMILIES["gemma3"]
    held = family.parameters(family.TINY, hf_source(family, family.TINY), "hf")
    assert held.has_rows("layers.0.attn.q.weight")
    assert not held.has_rows("layers.0.norm1.weight")
    stored = hf_source(family, family.TINY).tensors["model.layers.0.input_layernorm.weight"]
    assert (held.f32("layers.0.norm1.weight") == 1.0 + stored).all()


@given(heads=st.integers(1, 5), half=st.integers(1, 6), tail=st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_pairs_are_joined_and_split(heads: int, half: int, tail: int) -> None:
    shape = (heads * 2 * half, *([tail] if tail else []))
    rows = np.arange(np.prod(shape)).reshape(shape)
    joined = join_pairs(rows, heads)
    assert (split_pairs(joined, heads) == rows).all()
    # Row 2i of a head is row i of its first half, row 2i + 1 is row i of its second half.
    assert (joined[0] == rows[0]).all()
    assert (joined[1] == rows[half]).all()


def test_read_parameters_needs_the_names_of_its_scheme() -> None:
    family = FAMILIES["llama"]
    with pytest.raises(InputError, match=r"token_embd\.weight: missing"):
        read_parameters(family.weights(family.TINY), hf_source(family, family.TINY), "gguf")
