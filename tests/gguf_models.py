"""GGUF files of models as llama.cpp's converter makes them of Hugging Face checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
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
    if family.name == "gemma3":
        changes |= {"activation": "gelu_tanh", "query_scale": config.head_dim}
    return replace(config, **changes)


def write_gguf(family: Family[Any], config: Any, path: Path, hf: Mapping[str, Array]) -> None:
    """Writes a model from its Hugging Face tensors.

    Source: llama.cpp conversion/base.py, llama.py and gemma.py.
    """
    arch = family.name
    writer = gguf.GGUFWriter(path, arch)
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
    writer.add_tokenizer_model("gpt2")
    names = gguf.get_tensor_name_map(_arch_number(arch), config.layers)
    for name, array in hf.items():
        theirs = names.get_name(name, (".weight", ".bias"))
        writer.add_tensor(theirs, _converted(arch, config, name, array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


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
    return array
