"""Qwen3.5 in the files of others: configs with images, the order of value heads in GGUF."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tokenizers
from family_harness import Batch, Held, batch_inputs, differences, drawn_batch, drawn_parameters
from gguf_models import write_gguf
from tokenizer_files import bpe_metadata

from lockstep.errors import InputError, UsageError
from lockstep.families import FAMILIES, family_of_hf, write_parameters
from lockstep.formats import GGUFFile
from lockstep.ir import Array, interpret

FAMILY = FAMILIES["qwen35"]
GROUPED = next(iter(FAMILY.variants.values()))

# As published with Qwen/Qwen3.5-0.8B; `vision_config` is shortened.
TEXT: dict[str, Any] = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_output_gate": True,
    "dtype": "bfloat16",
    "eos_token_id": 248044,
    "full_attention_interval": 4,
    "head_dim": 256,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "initializer_range": 0.02,
    "intermediate_size": 3584,
    "layer_types": [*["linear_attention"] * 3, "full_attention"] * 6,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 16,
    "linear_value_head_dim": 128,
    "mamba_ssm_dtype": "float32",
    "max_position_embeddings": 262144,
    "mlp_only_layers": [],
    "model_type": "qwen3_5_text",
    "mtp_num_hidden_layers": 1,
    "mtp_use_dedicated_embeddings": False,
    "num_attention_heads": 8,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_parameters": {
        "mrope_interleaved": True,
        "mrope_section": [11, 11, 10],
        "partial_rotary_factor": 0.25,
        "rope_theta": 10000000,
        "rope_type": "default",
    },
    "tie_word_embeddings": True,
    "use_cache": True,
    "vocab_size": 248320,
}
PUBLISHED: dict[str, Any] = {
    "architectures": ["Qwen3_5ForConditionalGeneration"],
    "image_token_id": 248056,
    "model_type": "qwen3_5",
    "text_config": TEXT,
    "tie_word_embeddings": True,
    "transformers_version": "4.57.0.dev0",
    "video_token_id": 248057,
    "vision_config": {"depth": 12, "hidden_size": 768, "model_type": "qwen3_5"},
    "vision_end_token_id": 248054,
    "vision_start_token_id": 248053,
}


def test_the_text_model_of_a_published_config_is_read() -> None:
    assert family_of_hf(PUBLISHED) is family_of_hf(TEXT) is FAMILY
    config = FAMILY.from_hf(PUBLISHED)
    assert config == FAMILY.from_hf(TEXT)
    assert (config.rotary, config.mixed_width, config.theta) == (64, 6144, 1e7)
    assert [i for i in range(24) if config.is_attention(i)] == [3, 7, 11, 15, 19, 23]
    assert FAMILY.to_hf(config)["rope_parameters"] == TEXT["rope_parameters"]


@pytest.mark.torch
def test_the_published_model_has_the_parameters_of_transformers() -> None:
    import torch
    import transformers

    settings = transformers.Qwen3_5TextConfig.from_dict(TEXT)
    with torch.device("meta"):
        theirs = dict(transformers.Qwen3_5ForCausalLM(settings).named_parameters())
    table = FAMILY.weights(FAMILY.from_hf(TEXT))
    assert {w.hf: w.hf_form.shape(w.shape) for w in table} == {
        name: tuple(p.shape) for name, p in theirs.items()
    }


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"attn_output_gate": False}, "attn_output_gate: expected True, got False"),
        ({"output_gate_type": "sigmoid"}, "output_gate_type: expected 'swish', got 'sigmoid'"),
        ({"layer_types": ["linear_attention"] * 24}, "layer_types: expected"),
        ({"hidden_act": "gelu_pytorch_tanh"}, "activation: expected 'silu'"),
        ({"linear_conv_kernel_dim": 9}, "taps: expected a whole number from 2 to 8, got 9"),
        ({"linear_key_head_dim": 257}, "key_width: expected a whole number from 1 to 256"),
        ({"linear_num_value_heads": 24}, "multiple of key_heads"),
        ({"full_attention_interval": 0}, "interval: expected a whole number from 1"),
        ({"num_experts": 8}, "got num_experts"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings: expected the same"),
        ({"rope_parameters": {"partial_rotary_factor": 2.0}}, "partial_rotary_factor: expected"),
        ({"rope_parameters": {"partial_rotary_factor": 0.004}}, "rotary: expected a whole number"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope_type: expected"),
        ({"rope_parameters": 3}, "rope_parameters: expected a mapping"),
    ],
)
def test_a_config_that_we_cannot_carry_out_is_refused_by_name(
    change: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        FAMILY.from_hf({**PUBLISHED, "text_config": {**TEXT, **change}})


def test_an_unknown_key_beside_the_text_config_is_refused() -> None:
    with pytest.raises(InputError, match="got audio_config"):
        FAMILY.from_hf({**PUBLISHED, "audio_config": {}})
    with pytest.raises(InputError, match="text_config: expected a mapping, got 5"):
        FAMILY.from_hf({**PUBLISHED, "text_config": 5})


@pytest.mark.parametrize(
    ("setting", "value"), [("rotary", 7), ("key_heads", 0), ("value_heads", 5), ("taps", 1)]
)
def test_settings_that_no_program_carries_out_are_refused(setting: str, value: int) -> None:
    settings = {name: getattr(FAMILY.TINY, name) for name in FAMILY.TINY.__dataclass_fields__}
    with pytest.raises(UsageError, match=setting):
        FAMILY.Config(**{**settings, setting: value})


def hf_tensors(config: Any) -> dict[str, Array]:
    return write_parameters(FAMILY.weights(config), drawn_parameters(FAMILY, config), "hf")


def test_what_sees_images_or_guesses_tokens_is_left_out() -> None:
    tensors = hf_tensors(FAMILY.TINY)
    plain = FAMILY.hf_parameters(FAMILY.TINY, Held(tensors))
    renamed = {n.replace("model.", "model.language_model.", 1): a for n, a in tensors.items()}
    more = {"model.visual.patch_embed.proj.weight": np.ones(3), "mtp.fc.weight": np.ones(3)}
    found = FAMILY.hf_parameters(FAMILY.TINY, Held({**renamed, **more}))
    assert all(found[id].tobytes() == plain[id].tobytes() for id in plain)
    with pytest.raises(InputError, match=r"model\.audio\.weight: not a tensor"):
        FAMILY.hf_parameters(FAMILY.TINY, Held({**renamed, "model.audio.weight": np.ones(3)}))


def gguf_file(path: Path, config: Any, hf: dict[str, Array], **more: Any) -> GGUFFile:
    write_gguf(FAMILY, config, path, hf, **more)
    return GGUFFile(path)


def test_the_layer_that_guesses_in_gguf_is_left_out(tmp_path: Path) -> None:
    config = FAMILY.TINY

    def guessing(writer: gguf.GGUFWriter) -> None:
        writer.add_nextn_predict_layers(1)
        for name in ("nextn.eh_proj", "attn_q"):
            writer.add_tensor(f"blk.{config.layers}.{name}.weight", np.ones((2, 2), np.float32))

    file = gguf_file(tmp_path / "m.gguf", config, hf_tensors(config), more=guessing)
    metadata = {**file.metadata, "qwen35.block_count": config.layers + 1}
    assert FAMILY.from_gguf(metadata, file) == config
    assert len(FAMILY.gguf_parameters(config, file)) == len(FAMILY.weights(config))


def logits_of(config: Any, parameters: dict[str, Array]) -> Array:
    batch = drawn_batch(config, 2, 9)
    graph = FAMILY.training_graph(config, 2, 9)
    return interpret(graph, {**parameters, **batch_inputs(batch)})["head"]


def test_value_heads_in_the_order_of_gguf_are_the_same_model(tmp_path: Path) -> None:
    tensors = hf_tensors(GROUPED)
    file = gguf_file(tmp_path / "m.gguf", GROUPED, tensors)
    stored = {name: file.read(name) for name in file.shapes}
    config = FAMILY.from_gguf(file.metadata, file)
    assert config.tiled
    ours = FAMILY.gguf_parameters(config, file)
    theirs = FAMILY.hf_parameters(GROUPED, Held(tensors))
    logits = {"logits": logits_of(GROUPED, theirs)}
    assert differences({"logits": logits_of(config, ours)}, logits)["logits"] < 1e-12
    as_grouped = {"logits": logits_of(GROUPED, ours)}  # the fault that this is about
    assert differences(as_grouped, logits)["logits"] > 1e-3
    # Either order goes into either kind of file.
    tables = {c.tiled: FAMILY.weights(c) for c in (GROUPED, config)}
    for parameters, order in ((ours, True), (theirs, False)):
        for scheme, expected in (("hf", tensors), ("gguf", stored)):
            found = write_parameters(tables[order], parameters, scheme)  # type: ignore[arg-type]
            assert found.keys() == expected.keys()
            assert [n for n in expected if found[n].tobytes() != expected[n].tobytes()] == []


SECTIONS = "qwen35.rope.dimension_sections"

# llama.cpp keeps keys and values in half precision, which has 2^-11.
HALF = 4 * 2.0**-11


@pytest.mark.slow
@pytest.mark.parametrize("value_heads", [2, 6])
def test_llama_cpp_computes_the_same(value_heads: int, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    from llama_cpp_logits import next_logprobs

    splitter = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = bpe_metadata(splitter, "gpt-2", 400)
    n_vocab = len(tokenizer["tokenizer.ggml.tokens"])
    config = FAMILY.Config(
        vocab=n_vocab, width=64, ffn=96, layers=4, heads=4, kv_heads=2, head_dim=32, context=512,
        rotary=16, tied=False, key_heads=2, key_width=32, value_heads=value_heads, value_width=32,
    )  # fmt: skip
    tensors = hf_tensors(config)
    for name, array in tensors.items():
        if name.endswith("dt_bias"):
            array -= 5.0  # so that the states remember many tokens

    def with_tokenizer(writer: gguf.GGUFWriter) -> None:
        del writer.kv_data[0]["tokenizer.ggml.model"]
        for key, value in tokenizer.items():
            add = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string}
            add.get(type(value), writer.add_array)(key, value)

    file = gguf_file(tmp_path / "m.gguf", config, tensors, more=with_tokenizer)
    ids = np.random.default_rng(0).integers(0, n_vocab, 40, dtype=np.int32)
    lengths = [1, 2, 5, 17, 40]
    prompts = [ids[:n].tolist() for n in lengths]
    letter = tokenizer["tokenizer.ggml.tokens"].index("a")
    theirs = next_logprobs(tmp_path / "m.gguf", prompts, n_vocab, letter)
    found = FAMILY.from_gguf(file.metadata, file)
    batch = Batch(ids[None], np.zeros((1, 40), np.int32))
    graph = FAMILY.training_graph(found, 1, 40)
    inputs = {**FAMILY.gguf_parameters(found, file), **batch_inputs(batch)}
    logits = interpret(graph, inputs)["head"][np.array(lengths) - 1]
    ours = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert ours.std() > 1.0
    assert np.abs(ours - theirs).max() < HALF


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m | {"qwen35.expert_count": 8}, "expert_count"),
        (lambda m: m | {"qwen35.ssm.inner_size": 43}, "inner_size: expected a multiple of the 3"),
        (lambda m: m | {"qwen35.ssm.state_size": 300}, "key_width: expected a whole number"),
        (lambda m: {k: v for k, v in m.items() if "conv" not in k}, "expected a key .*conv_kernel"),
        (lambda m: {k: v for k, v in m.items() if "count" not in k}, "expected a key .*_count"),
        (lambda m: m | {SECTIONS: [8, 0, 0, 0]}, "dimension_sections: expected pairs dealt out"),
        (lambda m: m | {SECTIONS: [1, 1, 0, 1]}, "dimension_sections"),
        (lambda m: m | {SECTIONS: [10**30] * 4}, "dimension_sections"),
        (lambda m: m | {SECTIONS: "111"}, "dimension_sections"),
        (lambda m: m | {"qwen35.nextn_predict_layers": 4}, "layers: expected a whole number"),
    ],
)
def test_metadata_that_does_not_hold_together_is_refused(
    change: Callable[[dict[str, Any]], dict[str, Any]], says: str, tmp_path: Path
) -> None:
    config = FAMILY.TINY
    file = gguf_file(tmp_path / "m.gguf", config, hf_tensors(config))
    with pytest.raises(InputError, match=says):
        FAMILY.from_gguf(change(dict(file.metadata)), file)


def test_a_rate_of_decay_that_grows_is_refused(tmp_path: Path) -> None:
    config = FAMILY.TINY
    file = gguf_file(tmp_path / "m.gguf", config, hf_tensors(config))
    tensors = {name: file.read(name) for name in file.shapes}
    tensors["blk.0.ssm_a"] = -tensors["blk.0.ssm_a"]
    with pytest.raises(InputError, match=r"blk\.0\.ssm_a: expected negative .*A_log.*, got [0-9]"):
        FAMILY.gguf_parameters(config, Held(tensors))
