"""GGUF files of models as llama.cpp's converter makes them of Hugging Face checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from lockstep.families import Family, LinearScaling, Llama3Scaling, YarnScaling
from lockstep.ir import Array


def convertible(family: Family[Any], config: Any) -> Any:
    """The config with what GGUF cannot say set to what llama.cpp takes."""
    changes: dict[str, Any] = {"activation": "silu"}
    if isinstance(config.scaling, YarnScaling):
        changes["scaling"] = replace(config.scaling, truncate=True)
    if hasattr(config, "windowed_from"):
        changes |= {"window": 0, "windowed_from": 0}
    if family.name == "gemma3":
        changes |= {"activation": "gelu_tanh", "query_scale": config.head_dim}
    if family.name == "qwen35":
        changes["tiled"] = config.value_heads != config.key_heads
    return replace(config, **changes)


def write_gguf(
    family: Family[Any],
    config: Any,
    path: Path,
    hf: Mapping[str, Array],
    more: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
    *,
    split: int = 0,
    stored: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
) -> None:
    """Writes a model from its Hugging Face tensors, and whatever `more` adds.

    `split` is how many tensors a file has where it is one of several; 0 is all of them in one.
    Matrices are `stored` as that type where it has blocks of their width.

    Source: llama.cpp conversion/base.py, llama.py, gemma.py and qwen.py.
    """
    arch = family.name
    writer = gguf.GGUFWriter(path, arch, split_max_tensors=split)
    writer.add_name("drawn")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(config.layers)
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.width)
    writer.add_feed_forward_length(config.ffn)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.eps)
    writer.add_rope_freq_base(config.theta)
    _add_scaling(writer, config)
    if arch == "llama":
        writer.add_vocab_size(config.vocab)
        writer.add_rope_dimension_count(config.head_dim)
    if arch == "gemma3":
        writer.add_sliding_window(config.window)
        writer.add_sliding_window_pattern(config.period)
        writer.add_rope_freq_base_swa(config.local_theta)
    if arch == "qwen35":
        _add_delta(writer, config)
    writer.add_tokenizer_model("gpt2")
    more(writer)
    names = gguf.get_tensor_name_map(_arch_number(arch), config.layers)
    for name, array in hf.items():
        known = name.replace("dt_bias", "dt_proj.bias")
        theirs = names.get_name(known, (".weight", ".bias"))
        converted = _converted(arch, config, name, array)
        block, _ = gguf.GGML_QUANT_SIZES[stored]
        if converted.ndim > 1 and "conv1d" not in name and converted.shape[-1] % block == 0:
            quantised = gguf.quants.quantize(converted, stored)
            writer.add_tensor(theirs, quantised, raw_dtype=stored)
        else:
            writer.add_tensor(theirs, converted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_delta(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_rope_dimension_count(config.rotary)
    pairs = config.rotary // 2
    writer.add_rope_dimension_sections([(pairs + 2 - i) // 3 for i in range(3)] + [0])
    writer.add_ssm_conv_kernel(config.taps)
    writer.add_ssm_state_size(config.key_width)
    writer.add_ssm_group_count(config.key_heads)
    writer.add_ssm_time_step_rank(config.value_heads)
    writer.add_ssm_inner_size(config.value_heads * config.value_width)
    writer.add_full_attention_interval(config.interval)


def _arch_number(arch: str) -> Any:
    return {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}[arch]


def _add_scaling(writer: gguf.GGUFWriter, config: Any) -> None:
    scaling = config.scaling
    if isinstance(scaling, LinearScaling):
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(scaling.factor)
    if isinstance(scaling, YarnScaling):
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(scaling.factor)
        writer.add_rope_scaling_orig_ctx_len(scaling.original)
        writer.add_rope_scaling_yarn_attn_factor(scaling.magnitude)
        writer.add_rope_scaling_yarn_beta_fast(scaling.beta_fast)
        writer.add_rope_scaling_yarn_beta_slow(scaling.beta_slow)
    if isinstance(scaling, Llama3Scaling):
        factors_R = llama3_factors(scaling, config.theta, config.head_dim)
        writer.add_tensor("rope_freqs.weight", factors_R)


def llama3_factors(scaling: Llama3Scaling, theta: float, head_dim: int) -> Array:
    """The factors of rope as the converter takes them, pair by pair in float32."""
    exponents_R = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies_R = np.float32(1.0) / np.float32(theta) ** exponents_R
    factors = []
    for length in 2 * np.float32(np.pi) / frequencies_R:
        smooth = (scaling.original / length - scaling.low) / (scaling.high - scaling.low)
        if length < scaling.original / scaling.high:
            factors.append(1.0)
        elif length > scaling.original / scaling.low:
            factors.append(scaling.factor)
        else:
            factors.append(1.0 / ((1.0 - smooth) / scaling.factor + smooth))
    return np.array(factors, dtype=np.float32)


def _converted(arch: str, config: Any, name: str, array: Array) -> Array:
    """One tensor of Hugging Face in the values and the order of GGUF."""
    if arch == "gemma3" and name.endswith("norm.weight"):
        return array + np.float32(1.0)
    if arch == "llama" and name.rpartition(".")[0].endswith(("q_proj", "k_proj")):
        heads = config.heads if "q_proj" in name else config.kv_heads
        halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
        return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(array.shape))
    if arch == "qwen35":
        return _of_delta(config, name, array)
    return array


def _of_delta(config: Any, name: str, array: Array) -> Array:
    """A tensor of Qwen3.5: gains with their one, rates, value heads tiled over key heads."""
    width, keys = config.value_width, 2 * config.key_heads * config.key_width
    name = name.removesuffix(".weight")
    if name.endswith(("in_proj_qkv", "conv1d")):
        array = array.reshape(len(array), -1)
        array = np.concatenate([array[:keys], _tiled(array[keys:], config, width)])
    elif name.endswith("in_proj_z"):
        array = _tiled(array, config, width)
    elif name.endswith(("in_proj_a", "in_proj_b", "A_log", "dt_bias")):
        array = _tiled(array, config, 1)
    elif name.endswith("out_proj"):
        array = _tiled(array, config, width, axis=1)
    elif name.endswith("norm") and not name.endswith("linear_attn.norm"):
        array = array + np.float32(1.0)
    if name.endswith("A_log"):
        array = (-np.exp(array.astype(np.float64))).astype(np.float32)
    return array


def _tiled(array: Array, config: Any, width: int, axis: int = 0) -> Array:
    """First the first value head of every key head, then the second of each, and so on."""
    shape = array.shape
    split = (config.key_heads, config.value_heads // config.key_heads, width)
    heads = array.reshape(*shape[:axis], *split, *shape[axis + 1 :])
    return np.ascontiguousarray(heads.swapaxes(axis, axis + 1).reshape(shape))
