"""Meta's consolidated.00.pth of a llama and the HF directory that transformers makes of it.

The names and the moves are those of transformers' convert_llama_weights_to_hf.py for one shard: q
and k go from interleaved to half split, and each layer's rope frequencies are stored beside them.
Source: https://github.com/huggingface/transformers (src/transformers/models/llama)
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from conversions.conversion import Conversion, Scheme, Tensors, interleaved
from conversions.hf_models import config_of, hf_scheme, saved, tensors_of, tiny, write_hf

NAMES = {
    "attention.wq.weight": "self_attn.q_proj.weight",
    "attention.wk.weight": "self_attn.k_proj.weight",
    "attention.wv.weight": "self_attn.v_proj.weight",
    "attention.wo.weight": "self_attn.o_proj.weight",
    "feed_forward.w1.weight": "mlp.gate_proj.weight",
    "feed_forward.w2.weight": "mlp.down_proj.weight",
    "feed_forward.w3.weight": "mlp.up_proj.weight",
    "attention_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
}
OUTER = {
    "tok_embeddings.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


def meta_to_hf(root: Path, dtype: str = "bfloat16") -> Conversion:
    """Meta's file, and the directory of the same model as transformers saved it."""
    target = saved(tiny("llama"), root / "hf", dtype)
    config = config_of(target)
    tensors = tensors_of(target)
    source = write_meta(to_meta(tensors, config), root / "meta", config=config)
    write = partial(write_hf, config=config)
    scheme = hf_scheme(config, rope="half")
    return Conversion("meta-llama-to-hf", source, target, tensors, write, scheme)


def hf_to_meta(forth: Conversion, root: Path) -> Conversion:
    """The same pair the other way."""
    config = config_of(forth.target)
    tensors = to_meta(forth.tensors, config)
    write = partial(write_meta, config=config)
    target = write(tensors, root / "meta-again")
    return Conversion("hf-llama-to-meta", forth.target, target, tensors, write, _scheme(config))


def to_meta(hf: Tensors, config: dict[str, Any]) -> Tensors:
    """Meta's tensors, with `rope.freqs` as its files have it."""
    found = {meta: hf[name] for meta, name in OUTER.items()}
    for layer in range(config["num_hidden_layers"]):
        for meta, name in NAMES.items():
            w = hf[f"model.layers.{layer}.{name}"]
            if meta.endswith("wq.weight"):
                w = interleaved(w, config["num_attention_heads"])
            if meta.endswith("wk.weight"):
                w = interleaved(w, config["num_key_value_heads"])
            found[f"layers.{layer}.{meta}"] = w
    half = config["hidden_size"] // config["num_attention_heads"] // 2
    found["rope.freqs"] = (10000.0 ** -(np.arange(half) / half)).astype(found["norm.weight"].dtype)
    return found


def write_meta(tensors: Tensors, path: Path, *, config: dict[str, Any]) -> Path:
    """consolidated.00.pth beside params.json; the answer is the former."""
    import torch

    path.mkdir(parents=True)
    names = {"dim": "hidden_size", "n_layers": "num_hidden_layers", "norm_eps": "rms_norm_eps"}
    names |= {"n_heads": "num_attention_heads", "n_kv_heads": "num_key_value_heads"}
    (path / "params.json").write_text(json.dumps({k: config[v] for k, v in names.items()}))
    state = {name: torch_tensor(a) for name, a in tensors.items()}
    torch.save(state, path / "consolidated.00.pth")
    return path / "consolidated.00.pth"


def torch_tensor(a: np.ndarray) -> Any:
    """The same bits as a torch tensor, bfloat16 too, which torch does not take from numpy."""
    import torch

    copy = np.array(a)
    if copy.dtype.name == "bfloat16":
        return torch.from_numpy(copy.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(copy)


def _scheme(config: dict[str, Any]) -> Scheme:
    return Scheme(
        embed="tok_embeddings.weight",
        attn_norm="layers.{l}.attention_norm.weight",
        ffn_norm="layers.{l}.ffn_norm.weight",
        q="layers.{l}.attention.wq.weight",
        k="layers.{l}.attention.wk.weight",
        v="layers.{l}.attention.wv.weight",
        o="layers.{l}.attention.wo.weight",
        gate="layers.{l}.feed_forward.w1.weight",
        up="layers.{l}.feed_forward.w3.weight",
        layer="layers.{l}.",
        n_layers=config["num_hidden_layers"],
        n_heads=config["num_attention_heads"],
        n_kv_heads=config["num_key_value_heads"],
        rope="interleaved",
    )
