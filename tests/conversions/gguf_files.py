"""HF directories to GGUF by the rules of llama.cpp's converter, and back by transformers.

Names come from the gguf package's own map and the file from its writer. The two moves that the
converter adds are its `permute` of q and k (llama) and its `+ 1` on norms (gemma); it stores
vectors and norms in float32 and matrices in the type that it is asked for.
Source: https://github.com/ggml-org/llama.cpp (conversion/base.py, llama.py, gemma.py, gpt_neox.py)
"""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import gguf
import ml_dtypes
import numpy as np

from conversions.conversion import Array, Conversion, Scheme, Tensors, interleaved
from conversions.hf_models import config_of, hf_scheme, saved, tensors_of, tiny, write_hf

ARCHITECTURES = {"gpt_neox": "gptneox", "gemma3_text": "gemma3"}  # where the names are not equal
# To make such a table takes milliseconds: we ask for one per tensor, transformers one per module.
_name_map = cache(gguf.get_tensor_name_map)
_FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32}


def hf_to_gguf(kind: str, root: Path, *, stored: str = "F32", outtype: str = "F32",
               n_layers: int = 4, **changes: Any) -> Conversion:  # fmt: skip
    """A saved model in one type and its GGUF file in another."""
    dtype = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[stored]
    source = saved(tiny(kind, n_layers, **changes), root / "hf", dtype)
    config = config_of(source)
    tensors = {
        name: array
        for hf_name, w in tensors_of(source).items()
        for name, array in _converted(hf_name, w, config, outtype)
    }
    if config["rope_parameters"].get("rope_type") == "llama3":
        tensors["rope_freqs.weight"] = _rope_factors(source)
    write = partial(write_gguf, config=config, outtype=outtype)
    claims = {"llama": "llama", "qwen2": "qwen", "qwen3": "qwen", "gpt_neox": "gpt-neox"}
    name = f"hf-{claims.get(kind, 'gemma')}-to-gguf"
    target = write(tensors, root / "model.gguf")
    return Conversion(name, source, target, tensors, write, gguf_scheme(config))


def gguf_to_hf(forth: Conversion, root: Path) -> Conversion:
    """The GGUF file of a conversion as transformers loads it and saves it again."""
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    config = config_of(forth.source)
    kept = {key: config[key] for key in ("attention_bias",) if key in config}
    model = tiny(config["model_type"].removesuffix("_text"), config["num_hidden_layers"], **kept)
    with patch.object(gguf, "get_tensor_name_map", _name_map):
        loaded = load_gguf_checkpoint(forth.target, return_tensors=True, model_to_load=model)
    lacks = model.load_state_dict(loaded["tensors"], strict=False)
    assert set(lacks.missing_keys) <= {"lm_head.weight"}, lacks  # tied
    assert not lacks.unexpected_keys, lacks
    target = saved(model, root / "back")
    config = config_of(target)
    name = "gguf-to-hf-" + forth.claims.split("-")[1]
    rope = "half" if forth.scheme.rope else ""
    write = partial(write_hf, config=config)
    scheme = hf_scheme(config, rope)
    return Conversion(name, forth.target, target, tensors_of(target), write, scheme)


def _converted(
    name: str, w: Array, config: dict[str, Any], outtype: str
) -> list[tuple[str, Array]]:
    kind = config["model_type"]
    if name == "lm_head.weight" and "gemma" in kind:
        return []
    if kind == "llama" and name.endswith(("q_proj.weight", "q_proj.bias")):
        w = interleaved(w, config["num_attention_heads"])
    if kind == "llama" and name.endswith(("k_proj.weight", "k_proj.bias")):
        w = interleaved(w, config["num_key_value_heads"])
    if kind == "gpt_neox" and ".query_key_value." in name:
        w = _apart(w, config["num_attention_heads"])
    w = w if w.dtype == np.float16 else w.astype(np.float32)
    if "gemma" in kind and name.endswith("norm.weight"):
        w = w + w.dtype.type(1)
    names = _name_map(_architecture(config), config["num_hidden_layers"])
    new = names.get_name(name, try_suffixes=(".weight", ".bias"))
    assert new, name
    small = w.ndim <= 1 or new.endswith("_norm.weight")
    return [(new, _typed(w, "F32" if small else outtype))]


def _apart(w: Array, n_heads: int) -> Array:
    """A fused qkv with q, k and v of each head together, as all of q, all of k, all of v."""
    parts = w.reshape(n_heads, 3, -1, *w.shape[1:])
    return np.concatenate([parts[:, i].reshape(-1, *w.shape[1:]) for i in range(3)])


def _typed(w: Array, outtype: str) -> Array:
    w = w.astype(np.float32)
    if outtype == "BF16":
        raw = gguf.quantize(w, gguf.GGMLQuantizationType.BF16)
        return raw.view(ml_dtypes.bfloat16).reshape(w.shape)
    return w.astype({"F32": np.float32, "F16": np.float16}[outtype])


def _rope_factors(source: Path) -> Array:
    """By how much llama3's scaling slows each frequency, from transformers' own two."""
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = AutoConfig.from_pretrained(source)
    slowed, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    half = len(slowed)
    plain = config.rope_parameters["rope_theta"] ** -(np.arange(half, dtype=np.float32) / half)
    return plain.astype(np.float32) / slowed.numpy()


def _architecture(config: dict[str, Any]) -> Any:
    kind = config["model_type"]
    by_name = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    return by_name[ARCHITECTURES.get(kind, kind)]


def write_gguf(tensors: Tensors, path: Path, *, config: dict[str, Any], outtype: str,
               alignment: int = 32) -> Path:  # fmt: skip
    """A GGUF file with the metadata of a config."""
    path.parent.mkdir(parents=True, exist_ok=True)
    architecture = gguf.MODEL_ARCH_NAMES[_architecture(config)]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_custom_alignment(alignment)
    writer.add_file_type(_FILE_TYPES[outtype])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config.get("num_key_value_heads", config["num_attention_heads"]))
    writer.add_layer_norm_rms_eps(config.get("rms_norm_eps", 1e-5))
    if config.get("head_dim"):
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    for name, a in tensors.items():
        if a.dtype == ml_dtypes.bfloat16:
            raw = np.ascontiguousarray(a).view(np.uint8)
            writer.add_tensor(name, raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
        else:
            writer.add_tensor(name, np.ascontiguousarray(a))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_scheme(config: dict[str, Any]) -> Scheme:
    """The names of GGUF's decoders."""
    gemma = "gemma" in config["model_type"]
    return Scheme(
        embed="token_embd.weight",
        attn_norm="blk.{l}.attn_norm.weight",
        ffn_norm="blk.{l}.post_ffw_norm.weight" if gemma else "blk.{l}.ffn_norm.weight",
        q="blk.{l}.attn_q.weight",
        k="blk.{l}.attn_k.weight",
        v="blk.{l}.attn_v.weight",
        o="blk.{l}.attn_output.weight",
        gate="blk.{l}.ffn_gate.weight",
        up="blk.{l}.ffn_up.weight",
        layer="blk.{l}.",
        n_layers=config["num_hidden_layers"],
        n_heads=config["num_attention_heads"],
        n_kv_heads=config.get("num_key_value_heads", config["num_attention_heads"]),
        rope="interleaved" if config["model_type"] == "llama" else "",
    )


def unshifted_norms(t: Tensors, s: Scheme) -> Tensors:
    """A GGUF file of gemma whose converter forgot that norms are stored as 1 + w."""
    return {n: a - a.dtype.type(1) if n.endswith("_norm.weight") else a for n, a in t.items()}


def qkv_per_head(t: Tensors, s: Scheme) -> Tensors:
    """A GGUF file of GPT-NeoX whose fused qkv was left as transformers has it."""
    changed = dict(t)
    for name, w in t.items():
        if ".attn_qkv." in name:
            parts = w.reshape(3, s.n_heads, -1, *w.shape[1:])
            changed[name] = np.ascontiguousarray(parts.swapaxes(0, 1)).reshape(w.shape)
    return changed


def untied(t: Tensors, s: Scheme) -> Tensors:
    """A GGUF file with a head of its own, of a model whose head is its embedding."""
    return t | {"output.weight": t[s.embed][::-1].copy()}
