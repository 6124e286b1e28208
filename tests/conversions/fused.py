"""Fused projections and the same ones apart: Phi-3 of transformers, and Megatron Core's llama.

Phi-3 has [q; k; v] and [gate; up], one after the other on axis 0; transformers' own forward pass
cuts them there. Megatron has q, k and v of each group of heads together, and its norms inside the
layer that follows them.
Source: https://github.com/NVIDIA/Megatron-LM (megatron/core/transformer/attention.py)
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from conversions.conversion import Array, Conversion, Scheme, Tensors
from conversions.hf_models import config_of, hf_scheme, saved, tensors_of, tiny, write_hf

MEGATRON = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "self_attention.linear_proj.weight": "self_attn.o_proj.weight",
    "mlp.linear_fc1.layer_norm_weight": "post_attention_layernorm.weight",
    "mlp.linear_fc2.weight": "mlp.down_proj.weight",
}
MEGATRON_OUTER = {
    "embedding.word_embeddings.weight": "model.embed_tokens.weight",
    "decoder.final_layernorm.weight": "model.norm.weight",
    "output_layer.weight": "lm_head.weight",
}


def phi3_to_split(root: Path) -> Conversion:
    """Phi-3 as transformers saves it, and under llama's names with every projection alone."""
    source = saved(tiny("phi3"), root / "phi3", "bfloat16")
    config = config_of(source)
    target_config = {**config, "model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    tensors = _phi3_apart(tensors_of(source), config)
    write = partial(write_hf, config=target_config)
    target = write(tensors, root / "llama")
    return Conversion("phi3-to-split", source, target, tensors, write, hf_scheme(config))


def split_to_phi3(forth: Conversion, root: Path) -> Conversion:
    """The same pair the other way."""
    config = config_of(forth.source)
    tensors = tensors_of(forth.source)
    write = partial(write_hf, config=config)
    target = write(tensors, root / "phi3-again")
    scheme = hf_scheme(config)
    return Conversion("split-to-phi3", forth.target, target, tensors, write, scheme)


def _phi3_apart(fused: Tensors, config: dict[str, Any]) -> Tensors:
    n_q, n_kv = config["num_attention_heads"], config["num_key_value_heads"]
    d = config["hidden_size"] // n_q
    found: Tensors = {}
    for name, w in fused.items():
        if "qkv_proj" in name:
            parts = np.split(w, [n_q * d, (n_q + n_kv) * d])
            found |= {name.replace("qkv", p): a for p, a in zip("qkv", parts, strict=True)}
        elif "gate_up_proj" in name:
            gate, up = np.split(w, 2)
            found |= {name.replace("gate_up", p): a for p, a in (("gate", gate), ("up", up))}
        else:
            found[name] = w
    return found


def hf_to_megatron(root: Path) -> Conversion:
    """A llama of transformers, and the state that Megatron Core has of it, as one .pt file."""
    source = saved(tiny("llama"), root / "hf", "bfloat16")
    config = config_of(source)
    tensors = to_megatron(tensors_of(source), config)
    target = write_pt(tensors, root / "mcore.pt")
    scheme = _megatron_scheme(config)
    return Conversion("hf-llama-to-megatron", source, target, tensors, write_pt, scheme)


def megatron_to_hf(forth: Conversion, root: Path) -> Conversion:
    """The same pair the other way."""
    config = config_of(forth.source)
    tensors = tensors_of(forth.source)
    write = partial(write_hf, config=config)
    target = write(tensors, root / "hf-again")
    scheme = hf_scheme(config)
    return Conversion("megatron-to-hf-llama", forth.target, target, tensors, write, scheme)


def to_megatron(hf: Tensors, config: dict[str, Any]) -> Tensors:
    """Megatron Core's tensors: q, k and v of each group of heads one after the other."""
    n_kv = config["num_key_value_heads"]
    found = {name: hf[old] for name, old in MEGATRON_OUTER.items()}
    for layer in range(config["num_hidden_layers"]):
        old, new = f"model.layers.{layer}.", f"decoder.layers.{layer}."
        found |= {new + name: hf[old + part] for name, part in MEGATRON.items()}
        parts = [hf[f"{old}self_attn.{p}_proj.weight"] for p in "qkv"]
        found[new + "self_attention.linear_qkv.weight"] = per_group(parts, n_kv)
        halves = [hf[old + "mlp.gate_proj.weight"], hf[old + "mlp.up_proj.weight"]]
        found[new + "mlp.linear_fc1.weight"] = np.concatenate(halves)
    return found


def per_group(parts: list[Array], n_groups: int) -> Array:
    """q, k and v joined group by group."""
    width = parts[0].shape[1]
    return np.concatenate([p.reshape(n_groups, -1, width) for p in parts], 1).reshape(-1, width)


def write_pt(tensors: Tensors, path: Path) -> Path:
    """One state dict as torch saves it."""
    import torch

    from conversions.meta_llama import torch_tensor

    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({name: torch_tensor(a) for name, a in tensors.items()}, path)
    return path


def _megatron_scheme(config: dict[str, Any]) -> Scheme:
    block = "decoder.layers.{l}."
    return Scheme(
        embed="embedding.word_embeddings.weight",
        attn_norm=block + "self_attention.linear_qkv.layer_norm_weight",
        ffn_norm=block + "mlp.linear_fc1.layer_norm_weight",
        q=block + "self_attention.linear_qkv.weight",
        k=block + "self_attention.linear_qkv.weight",
        v=block + "self_attention.linear_qkv.weight",
        o=block + "self_attention.linear_proj.weight",
        gate=block + "mlp.linear_fc1.weight",
        up=block + "mlp.linear_fc1.weight",
        layer=".{l}.",
        n_layers=config["num_hidden_layers"],
        n_heads=config["num_attention_heads"],
        n_kv_heads=config["num_key_value_heads"],
    )


def qkv_one_after_the_other(t: Tensors, s: Scheme) -> Tensors:
    """A Megatron target whose converter wrote [q; k; v] without regard to groups."""
    name = s.q.format(l=1)
    w = t[name]
    per_head = w.shape[0] // (s.n_heads + 2 * s.n_kv_heads)
    n_q = s.n_heads // s.n_kv_heads * per_head
    groups = w.reshape(s.n_kv_heads, -1, w.shape[1])
    cuts = np.split(groups, [n_q, n_q + per_head], 1)
    return t | {name: np.concatenate([c.reshape(-1, w.shape[1]) for c in cuts])}


def halves_reversed(t: Tensors, s: Scheme) -> Tensors:
    """gate and up in the other order in one layer of a fused target."""
    name = next(n for n in t if ".1." in n and ("linear_fc1.weight" in n or "gate_up" in n))
    return t | {name: np.concatenate(np.split(t[name], 2)[::-1])}
