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
from gguf_models import convertible, llama3_factors, write_gguf
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.errors import InputError, UsageError
from lockstep.families import (
    FAMILIES,
    Family,
    LinearScaling,
    Llama3Scaling,
    family_named,
    family_of_gguf,
    family_of_hf,
    read_parameters,
    write_parameters,
)
from lockstep.families.form import AS_IS, join_pairs, split_pairs
from lockstep.families.rope_config import llama3_of_factors
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
# As published with Qwen/Qwen2.5-0.5B.
QWEN25_05B: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "hidden_act": "silu",
    "hidden_size": 896,
    "initializer_range": 0.02,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 24,
    "model_type": "qwen2",
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.40.1",
    "use_cache": True,
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
# As published with google/gemma-3-1b-it.
GEMMA3_1B: dict[str, Any] = {
    "architectures": ["Gemma3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": None,
    "bos_token_id": 2,
    "cache_implementation": "hybrid",
    "eos_token_id": [1, 106],
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 1152,
    "initializer_range": 0.02,
    "intermediate_size": 6912,
    "max_position_embeddings": 32768,
    "model_type": "gemma3_text",
    "num_attention_heads": 4,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.50.0.dev0",
    "use_cache": True,
    "vocab_size": 262144,
}
# What google/gemma-3-270m has besides, or otherwise.
GEMMA3_270M: dict[str, Any] = {
    **{k: v for k, v in GEMMA3_1B.items() if k not in ("cache_implementation", "eos_token_id")},
    "_sliding_window_pattern": 6,
    "eos_token_id": 1,
    "hidden_size": 640,
    "intermediate_size": 2048,
    "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 3,
    "num_hidden_layers": 18,
    "sliding_window_pattern": None,
    "use_bidirectional_attention": False,
}
# As published with google/gemma-3-4b-it, which sees; most of the text model is left to defaults.
GEMMA3_4B: dict[str, Any] = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "boi_token_index": 255999,
    "eoi_token_index": 256000,
    "eos_token_id": [1, 106],
    "image_token_index": 262144,
    "initializer_range": 0.02,
    "mm_tokens_per_image": 256,
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "torch_dtype": "bfloat16",
    "transformers_version": "4.50.0.dev0",
    "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
}
# As published with HuggingFaceTB/SmolLM2-135M.
SMOLLM2_135M: dict[str, Any] = {
    **{k: v for k, v in LLAMA_32_1B.items() if k != "head_dim"},
    "bos_token_id": 0,
    "eos_token_id": 0,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "is_llama_config": True,
    "max_position_embeddings": 8192,
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "rope_interleaved": False,
    "rope_scaling": None,
    "rope_theta": 100000,
    "vocab_size": 49152,
}
# A llama of the size of Nanbeige/Nanbeige4.1-3B.
NANBEIGE_3B: dict[str, Any] = {
    **LLAMA_32_1B,
    "head_dim": 128,
    "hidden_size": 2560,
    "intermediate_size": 10496,
    "max_position_embeddings": 262144,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "num_key_value_heads": 4,
    "pad_token_id": 0,
    "rope_scaling": None,
    "rope_theta": 70000000,
    "tie_word_embeddings": False,
    "vocab_size": 166144,
}


def n_parameters(published: dict[str, Any]) -> int:
    family = family_of_hf(published)
    return sum(int(np.prod(w.shape)) for w in family.weights(family.from_hf(published)))


def hf_source(family: Family[Any], config: Any) -> Held:
    table = family.weights(config)
    return Held(write_parameters(table, drawn_parameters(family, config), "hf"))


@pytest.mark.parametrize(
    ("published", "count"),
    [  # as the model cards round them
        (QWEN3_06B, 596_049_920),  # 0.6B
        (LLAMA_32_1B, 1_235_814_400),  # 1.24B
        (QWEN25_05B, 494_032_768),  # 0.49B
        (GEMMA3_1B, 999_885_952),  # 1B
        (GEMMA3_270M, 268_098_176),  # 270M
        (GEMMA3_4B, 3_880_263_168),  # 4B, of which the text model has 3.88B
        (SMOLLM2_135M, 134_515_008),  # 135M
        (NANBEIGE_3B, 3_933_637_120),  # 4B with both tables
    ],
)
def test_published_configs_are_read(published: dict[str, Any], count: int) -> None:
    assert n_parameters(published) == count


def test_the_settings_of_published_configs_are_kept() -> None:
    qwen3 = FAMILIES["qwen3"].from_hf(QWEN3_06B)
    assert (qwen3.q_width, qwen3.kv_width, qwen3.tied, qwen3.theta) == (2048, 1024, True, 1e6)
    llama = FAMILIES["llama"].from_hf(LLAMA_32_1B)
    assert llama.scaling == Llama3Scaling(factor=32.0, low=1.0, high=4.0, original=8192)
    small = FAMILIES["gemma3"].from_hf(GEMMA3_270M)
    assert small.layer_types == GEMMA3_270M["layer_types"]
    assert (small.window, small.theta, small.local_theta) == (512, 1e6, 1e4)
    large = FAMILIES["gemma3"].from_hf(GEMMA3_4B)
    assert large.scaling == LinearScaling(factor=8.0)
    assert large.ropes["rope_local"].scaling is None
    assert (large.vocab, large.heads, large.window, large.tied) == (262208, 8, 1024, True)


@pytest.mark.torch
@pytest.mark.parametrize(
    "name", ["Qwen2Config", "Qwen3Config", "LlamaConfig", "Gemma3TextConfig", "Gemma3Config"]
)
def test_configs_are_read_with_every_key_that_transformers_writes(name: str) -> None:
    import transformers

    written = getattr(transformers, name)().to_dict()
    family = family_of_hf(written)
    config = family.from_hf(written)
    text = written.get("text_config", written)
    assert (config.vocab, config.context) == (text["vocab_size"], text["max_position_embeddings"])
    again = getattr(transformers, name.replace("Gemma3Config", "Gemma3TextConfig"))
    assert family.from_hf(again.from_dict(family.to_hf(config)).to_dict()) == config


@pytest.mark.parametrize(("family", "config"), EVERY_CONFIG)
def test_a_config_survives_the_way_through_hf(family: Family[Any], config: Any) -> None:
    assert family.from_hf(family.to_hf(config)) == config
    assert family_of_hf(family.to_hf(config)) is family


@pytest.mark.torch
@pytest.mark.parametrize("published", [QWEN3_06B, QWEN25_05B])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"use_sliding_window": True},
        {"use_sliding_window": True, "sliding_window": None},
        {"use_sliding_window": True, "sliding_window": 77, "max_window_layers": 5},
        {"use_sliding_window": True, "sliding_window": 77, "max_window_layers": 0},
        {"use_sliding_window": False, "sliding_window": 77, "max_window_layers": 0},
    ],
)
def test_layers_have_the_windows_of_transformers(
    published: dict[str, Any], change: dict[str, Any]
) -> None:
    transformers = pytest.importorskip("transformers")
    family = family_of_hf(published)
    kind = getattr(transformers, family.hf_class).config_class
    for written in (published | change, family.to_hf(family.from_hf(published | change))):
        theirs, ours = kind.from_dict(written), family.from_hf(written)
        assert ours.layer_types == theirs.layer_types
        if "sliding_attention" in theirs.layer_types:
            assert ours.window == theirs.sliding_window
    listed = theirs.to_dict()["layer_types"]
    again = family.from_hf(written | {"layer_types": listed, "max_window_layers": None})
    assert again == ours


@pytest.mark.parametrize(
    "listed", [(["sliding_attention"] * 2 + ["full_attention"]) * 6, ["full_attention"] * 18]
)
def test_listed_layers_count_more_than_a_pattern_beside_them(listed: list[str]) -> None:
    """As transformers writes them: the pattern that it does not use is its default."""
    found = family_of_hf(GEMMA3_270M).from_hf(GEMMA3_270M | {"layer_types": listed})
    assert found.layer_types == listed


@pytest.mark.parametrize(
    ("published", "change", "says"),
    [
        (
            QWEN3_06B,
            {"use_sliding_window": True, "sliding_window": -1, "max_window_layers": 3},
            "window: expected a whole number",
        ),
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
        (LLAMA_32_1B, {"rope_interleaved": True}, "rope_interleaved: expected False"),
        (
            QWEN25_05B,
            {
                "use_sliding_window": True,
                "layer_types": ["sliding_attention", "full_attention"] * 12,
            },
            "layer_types: expected 24 times full_attention, then sliding",
        ),
        (QWEN25_05B, {"use_mrope": True}, "use_mrope: expected False, got True"),
        (QWEN25_05B, {"attention_bias": True}, "got attention_bias"),
        (GEMMA3_1B, {"final_logit_softcapping": 30.0}, "final_logit_softcapping: .* got 30.0"),
        (GEMMA3_1B, {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping: .* got 50.0"),
        (GEMMA3_1B, {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        (GEMMA3_1B, {"sliding_window_pattern": 0, "layer_types": ["a"]}, "layer_types"),
        (GEMMA3_1B, {"sliding_window": 0}, "window: expected a whole number"),
        (GEMMA3_1B, {"layer_types": ["full_attention", "sliding_attention"] * 13}, "layer_types"),
        (
            GEMMA3_1B,
            {"layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 2},
            "layer_types: expected 26, .* got 12",
        ),
        (GEMMA3_1B, {"rope_parameters": {"linear_attention": {}}}, "got linear_attention"),
        (
            GEMMA3_1B,
            {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
            "sliding_attention: expected no scaling",
        ),
        (GEMMA3_4B, {"text_config": {"hidden_act": "silu"}}, "text_config.*got hidden_act"),
        (GEMMA3_4B, {"tie_word_embeddings": False}, "tie_word_embeddings: expected True"),
        (LLAMA_32_1B, {"rope_parameters": {"rope_type": "default"}}, "got both"),
    ],
)
def test_a_config_that_we_cannot_carry_out_is_refused_by_name(
    published: dict[str, Any], change: dict[str, Any], says: str
) -> None:
    family = family_of_hf(published)
    family.from_hf(published)
    with pytest.raises(InputError, match=says) as refused:
        family.from_hf({**published, **change})
    assert refused.value.hint, "what to do next"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=4,
)


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_any_value_of_any_key_is_read_or_refused(data: st.DataObject) -> None:
    published = data.draw(st.sampled_from([QWEN3_06B, LLAMA_32_1B, QWEN25_05B, GEMMA3_270M]))
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
    with pytest.raises(InputError, match=r"qwen3, llama, .*, got 'mamba'"):
        family_of_hf({"model_type": "mamba"})
    with pytest.raises(InputError, match=r"general\.architecture: .* got 'mamba'"):
        family_of_gguf({"general.architecture": "mamba"})
    with pytest.raises(UsageError, match=r"qwen3, llama, .*, got 'gpt'"):
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
