"""Configs and weight tables of every family: read strictly, in the names of others."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from family_harness import EVERY_CONFIG, Held, drawn_parameters
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.errors import InputError, UsageError
from lockstep.families import (
    FAMILIES,
    Family,
    Llama3Scaling,
    family_named,
    family_of_hf,
    read_parameters,
    write_parameters,
)
from lockstep.families.form import join_pairs, split_pairs
from lockstep.formats import GGUFFile, HFDirectory, write_hf_directory

# As published with Qwen/Qwen3-0.6B.
QWEN3_06B: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
# As published with meta-llama/Llama-3.2-1B.
LLAMA_32_1B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.45.0.dev0",
    "use_cache": True,
    "vocab_size": 128256,
}


def hf_source(family: Family[Any], config: Any) -> Held:
    table = family.weights(config)
    return Held(write_parameters(table, drawn_parameters(family, config), "hf"))


def test_published_configs_are_read() -> None:
    qwen3 = FAMILIES["qwen3"].from_hf(QWEN3_06B)
    assert (qwen3.q_width, qwen3.kv_width, qwen3.tied, qwen3.theta) == (2048, 1024, True, 1e6)
    n_parameters = sum(int(np.prod(w.shape)) for w in FAMILIES["qwen3"].weights(qwen3))
    assert n_parameters == 596_049_920  # as its model card rounds it: 0.6B
    llama = FAMILIES["llama"].from_hf(LLAMA_32_1B)
    assert llama.scaling == Llama3Scaling(factor=32.0, low=1.0, high=4.0, original=8192)
    n_parameters = sum(int(np.prod(w.shape)) for w in FAMILIES["llama"].weights(llama))
    assert n_parameters == 1_235_814_400


@pytest.mark.parametrize(("family", "config"), EVERY_CONFIG)
def test_a_config_survives_the_way_through_hf(family: Family[Any], config: Any) -> None:
    assert family.from_hf(family.to_hf(config)) == config
    assert family_of_hf(family.to_hf(config)) is family


@pytest.mark.parametrize(
    ("published", "change", "says"),
    [
        (QWEN3_06B, {"use_sliding_window": True}, "use_sliding_window: expected False, got True"),
        (QWEN3_06B, {"layer_types": ["sliding_attention"] * 28}, "layer_types"),
        (QWEN3_06B, {"attention_dropout": 0.1}, "attention_dropout: expected 0.0 or 0, got 0.1"),
        (QWEN3_06B, {"hidden_act": "relu"}, "hidden_act: .* got 'relu'"),
        (QWEN3_06B, {"rope_scaling": {"rope_type": "dynamic"}}, "rope_type: .*'dynamic'"),
        (QWEN3_06B, {"rope_scaling": {"type": "longrope"}}, "type: .*'longrope'"),
        (QWEN3_06B, {"rope_scaling": {"type": "linear"}}, "expected a key factor"),
        (QWEN3_06B, {"rope_scaling": {"type": "linear", "factor": -2.0}}, "factor above 0"),
        (QWEN3_06B, {"rope_scaling": {"type": "yarn", "factor": 2.0, "low": 1}}, "got low"),
        (QWEN3_06B, {"quantization_config": {}}, "got quantization_config"),
        (QWEN3_06B, {"new_a": 1, "new_b": 2}, "got new_a, new_b"),
        (QWEN3_06B, {"mlp_bias": False}, "got mlp_bias"),
        (QWEN3_06B, {"hidden_size": "1024"}, "hidden_size: expected int, got '1024'"),
        (QWEN3_06B, {"hidden_size": None}, "expected a key hidden_size"),
        (QWEN3_06B, {"num_hidden_layers": True}, "num_hidden_layers: expected int, got True"),
        (QWEN3_06B, {"num_key_value_heads": 3}, "multiple of kv_heads"),
        (QWEN3_06B, {"head_dim": 7}, "head_dim: expected an even number"),
        (QWEN3_06B, {"head_dim": 258}, "head_dim: expected an even number up to 256"),
        (QWEN3_06B, {"rms_norm_eps": float("nan")}, "eps: expected a positive number"),
        (QWEN3_06B, {"rope_parameters": {"rope_theta": 5.0, "rope_type": "default"}}, "rope_theta"),
        (LLAMA_32_1B, {"rope_scaling": {"rope_type": "llama3"}}, "expected a key factor"),
        (
            LLAMA_32_1B,
            {"rope_scaling": {**LLAMA_32_1B["rope_scaling"], "factor": float("inf")}},
            "factor above 0",
        ),
        (
            LLAMA_32_1B,
            {"rope_scaling": {**LLAMA_32_1B["rope_scaling"], "low_freq_factor": 4.0}},
            "low < high",
        ),
        (LLAMA_32_1B, {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        (LLAMA_32_1B, {"rope_parameters": {"rope_type": "default"}}, "got both"),
    ],
)
def test_a_config_that_we_cannot_carry_out_is_refused_by_name(
    published: dict[str, Any], change: dict[str, Any], says: str
) -> None:
    family = family_of_hf(published)
    family.from_hf(published)
    with pytest.raises(InputError, match=says):
        family.from_hf({**published, **change})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=4,
)


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_any_value_of_any_key_is_read_or_refused(data: st.DataObject) -> None:
    published = data.draw(st.sampled_from([QWEN3_06B, LLAMA_32_1B]))
    rope = LLAMA_32_1B["rope_scaling"]
    numbers = st.sampled_from([0, -1, 2**31, 10**400, 1e300, float("inf")])
    values = JSON | numbers | st.sampled_from(sorted(rope)).map(lambda k: {**rope, k: 10**400})
    key = data.draw(st.sampled_from([*sorted(published), "rope_parameters", "layer_types"]))
    family = family_of_hf(published)
    changed = {**published, key: data.draw(values)}
    with contextlib.suppress(InputError):  # any other exception is a failure
        config = family.from_hf(changed)
        assert family.from_hf(family.to_hf(config)) == config
        assert len(family.weights(config)) > 100


def test_unknown_families_are_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="qwen3, llama, got 'mamba'"):
        family_of_hf({"model_type": "mamba"})
    with pytest.raises(UsageError, match="qwen3, llama, got 'gpt'"):
        family_named("gpt")


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
    untied = replace(family.TINY, tied=False)
    with pytest.raises(InputError, match=r"lm_head\.weight: missing"):
        family.hf_parameters(untied, source)


@pytest.mark.parametrize(("family", "config"), EVERY_CONFIG)
def test_gguf_names_are_those_of_the_gguf_package(family: Family[Any], config: Any) -> None:
    arch = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}[family.name]
    names = gguf.get_tensor_name_map(arch, config.layers)
    for weight in family.weights(config):
        assert names.get_name(weight.hf, (".weight", ".bias")) == weight.gguf


def test_a_gguf_file_gives_config_and_parameters(tmp_path: Path) -> None:
    for family in FAMILIES.values():
        c, arch = family.TINY, family.name
        parameters = drawn_parameters(family, c)
        writer = gguf.GGUFWriter(tmp_path / f"{arch}.gguf", arch)
        writer.add_block_count(c.layers)
        writer.add_context_length(c.context)
        writer.add_embedding_length(c.width)
        writer.add_feed_forward_length(c.ffn)
        writer.add_head_count(c.heads)
        writer.add_head_count_kv(c.kv_heads)
        writer.add_key_length(c.head_dim)
        writer.add_value_length(c.head_dim)
        writer.add_layer_norm_rms_eps(0.5)
        writer.add_rope_freq_base(c.theta)
        for name, array in write_parameters(family.weights(c), parameters, "gguf").items():
            writer.add_tensor(name, array)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        file = GGUFFile(tmp_path / f"{arch}.gguf")
        assert family.from_gguf(file.metadata, file) == replace(c, eps=0.5)
        back = family.gguf_parameters(c, file)
        assert all(back[id].tobytes() == parameters[id].tobytes() for id in parameters)
        unknown = {**file.metadata, f"{arch}.expert_count": 8}
        with pytest.raises(InputError, match="expert_count"):
            family.from_gguf(unknown, file)
        scaled = {**file.metadata, f"{arch}.rope.scaling.type": "longrope"}
        with pytest.raises(InputError, match=r"rope\.scaling\.type: expected .* got 'longrope'"):
            family.from_gguf(scaled, file)


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
