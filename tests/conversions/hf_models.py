"""Tiny models of transformers' own classes with drawn weights, saved with save_pretrained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from conversions.conversion import Scheme, Tensors

_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_CLASSES = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {"tie_word_embeddings": False}),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {"head_dim": 16, "tie_word_embeddings": True}),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", {"head_dim": 8, "query_pre_attn_scalar": 8}),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", {"head_dim": 16}),
    "gpt_neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", {"tie_word_embeddings": False}),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", {"tie_word_embeddings": False}),
}


def tiny(kind: str, n_layers: int = 4, **changes: Any) -> Any:
    """A model in float32 whose every parameter is drawn, gains and biases too."""
    import torch
    import transformers

    config_class, model_class, own = _CLASSES[kind]
    config = getattr(transformers, config_class)(
        **{**_SIZES, "num_hidden_layers": n_layers, **own, **changes}
    )
    model = getattr(transformers, model_class)(config)
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in model.named_parameters():
            gain = p.ndim == 1 and "norm" in name and name.endswith("weight")
            mean = 1.0 if gain and "gemma" not in kind else 0.0
            p.normal_(mean, 0.02 if p.ndim == 1 else 0.15, generator=draw)
        for name, p in model.named_parameters():
            if name.endswith("layers.0.mlp.up_proj.weight"):
                p[0, 0] = 0.0  # for the fault that turns its sign
            if name.endswith("layers.0.mlp.gate_up_proj.weight"):
                p[p.shape[0] // 2, 0] = 0.0  # the same, where up begins
    return model.eval()


def saved(model: Any, path: Path, dtype: str = "float32") -> Path:
    """The directory that save_pretrained writes."""
    import torch

    model.to(getattr(torch, dtype)).save_pretrained(path)
    return path


def config_of(path: Path) -> dict[str, Any]:
    """config.json of a saved model."""
    found: dict[str, Any] = json.loads((path / "config.json").read_text())
    return found


def tensors_of(path: Path) -> Tensors:
    """Every tensor of a saved model as it is stored."""
    import ml_dtypes  # noqa: F401  safetensors gives bfloat16 to numpy only where this is imported
    from safetensors.numpy import load_file

    return {name: np.asarray(a) for name, a in load_file(path / "model.safetensors").items()}


def write_hf(tensors: Tensors, path: Path, config: dict[str, Any]) -> Path:
    """A directory of the same form, from tensors."""
    from safetensors.numpy import save_file

    path.mkdir(parents=True)
    save_file({name: np.asarray(a, order="C") for name, a in tensors.items()},
              path / "model.safetensors", metadata={"format": "pt"})  # fmt: skip
    (path / "config.json").write_text(json.dumps(config))
    return path


def hf_scheme(config: dict[str, Any], rope: str = "") -> Scheme:
    """The names of transformers' decoders."""
    block = "model.layers.{l}."
    return Scheme(
        embed="model.embed_tokens.weight",
        attn_norm=block + "input_layernorm.weight",
        ffn_norm=block + "post_attention_layernorm.weight",
        q=block + "self_attn.q_proj.weight",
        k=block + "self_attn.k_proj.weight",
        v=block + "self_attn.v_proj.weight",
        o=block + "self_attn.o_proj.weight",
        gate=block + "mlp.gate_proj.weight",
        up=block + "mlp.up_proj.weight",
        layer=".{l}.",
        n_layers=config["num_hidden_layers"],
        n_heads=config["num_attention_heads"],
        n_kv_heads=config["num_key_value_heads"],
        rope=rope,
    )
