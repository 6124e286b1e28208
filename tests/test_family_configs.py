"""Configs of every family: read strictly, in the keys of others."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
from family_harness import EVERY_CONFIG
from hypothesis import given, settings
from hypothesis import strategies as st
from published_configs import (
    GEMMA3_1B,
    GEMMA3_4B,
    GEMMA3_270M,
    LLAMA_32_1B,
    NANBEIGE_3B,
    QWEN3_06B,
    QWEN25_05B,
    SMOLLM2_135M,
)

from lockstep.errors import InputError, UsageError
from lockstep.families import (
    FAMILIES,
    Family,
    LinearScaling,
    Llama3Scaling,
    family_named,
    family_of_gguf,
    family_of_hf,
)


def n_parameters(published: dict[str, Any]) -> int:
    family = family_of_hf(published)
    return sum(int(np.prod(w.shape)) for w in family.weights(family.from_hf(published)))


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


@pytest.mark.torch
def test_a_window_that_is_not_said_is_the_one_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    written = QWEN3_06B | {"use_sliding_window": True, "max_window_layers": 3}
    del written["sliding_window"]
    theirs = transformers.Qwen3Config.from_dict(written)
    assert FAMILIES["qwen3"].from_hf(written).window == theirs.sliding_window


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
            "sliding_window: expected at least 1",
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
