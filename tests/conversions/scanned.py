"""Layers stacked for a scan, by MaxText's and by flax's own habit, and one by one as in HF.

MaxText stacks on axis 1 and gives kernels as (in, heads, head_dim) or (heads, head_dim, out); its
Qwen3 needs no permutation of q and k. flax's nn.scan stacks on axis 0 and Dense has (in, out).
Source: https://github.com/AI-Hypercomputer/maxtext (checkpoint_conversion/utils/param_mapping.py)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from conversions.conversion import Array, Conversion, Scheme, Tensors
from conversions.faults import Fault, exchange
from conversions.hf_models import config_of, hf_scheme, saved, tensors_of, tiny, write_hf
from conversions.trees import flat, transposed, write_orbax

_LAYERS = "params/params/decoder/layers/"
_FLAX = "params/layers/"
_FLAX_PARTS = {
    "self_attn/q_proj": "self_attn.q_proj",
    "self_attn/k_proj": "self_attn.k_proj",
    "self_attn/v_proj": "self_attn.v_proj",
    "self_attn/o_proj": "self_attn.o_proj",
    "mlp/gate_proj": "mlp.gate_proj",
    "mlp/up_proj": "mlp.up_proj",
    "mlp/down_proj": "mlp.down_proj",
}
_FLAX_NORMS = ("input_layernorm", "post_attention_layernorm")


def qwen3_to_maxtext(root: Path) -> Conversion:
    """Qwen3 of transformers, and MaxText's scanned tree of it in Orbax."""
    source = saved(tiny("qwen3"), root / "hf", "bfloat16")
    config = config_of(source)
    tensors = _to_maxtext(tensors_of(source), config)
    target = write_orbax(tensors, root / "maxtext" / "0" / "items")
    scheme = _maxtext_scheme(config)
    return Conversion("hf-qwen3-to-maxtext", source, target, tensors, write_orbax, scheme)


def back_to_hf(forth: Conversion, root: Path) -> Conversion:
    """The same pair the other way."""
    config = config_of(forth.source)
    tensors = tensors_of(forth.source)
    write = partial(write_hf, config=config)
    target = write(tensors, root / "hf-again")
    name = {"hf-qwen3-to-maxtext": "maxtext-to-hf-qwen3",
            "hf-llama-to-flax-scan": "flax-scan-to-hf-llama"}[forth.claims]  # fmt: skip
    return Conversion(name, forth.target, target, tensors, write, hf_scheme(config))


def _to_maxtext(hf: Tensors, config: dict[str, Any]) -> Tensors:
    n_layers, d = config["num_hidden_layers"], config["head_dim"]

    def stacked(part: str, shape: tuple[int, ...] | None = None) -> Array:
        per_layer = [hf[f"model.layers.{i}.{part}.weight"].T for i in range(n_layers)]
        shaped = [w.reshape(shape) if shape else w for w in per_layer]
        return np.ascontiguousarray(np.stack(shaped, axis=1))

    heads = (-1, d)
    parts = {
        "pre_self_attention_layer_norm/scale": stacked("input_layernorm"),
        "post_self_attention_layer_norm/scale": stacked("post_attention_layernorm"),
        "self_attention/query_norm/scale": stacked("self_attn.q_norm"),
        "self_attention/key_norm/scale": stacked("self_attn.k_norm"),
        "self_attention/query/kernel": stacked("self_attn.q_proj", (config["hidden_size"], *heads)),
        "self_attention/key/kernel": stacked("self_attn.k_proj", (config["hidden_size"], *heads)),
        "self_attention/value/kernel": stacked("self_attn.v_proj", (config["hidden_size"], *heads)),
        "self_attention/out/kernel": stacked("self_attn.o_proj", (*heads, config["hidden_size"])),
        "mlp/wi_0/kernel": stacked("mlp.gate_proj"),
        "mlp/wi_1/kernel": stacked("mlp.up_proj"),
        "mlp/wo/kernel": stacked("mlp.down_proj"),
    }
    return {
        "params/params/token_embedder/embedding": hf["model.embed_tokens.weight"],
        "params/params/decoder/decoder_norm/scale": hf["model.norm.weight"],
        **{_LAYERS + name: a for name, a in parts.items()},
        "step": np.array(0, np.int32),
    }


def _maxtext_scheme(config: dict[str, Any]) -> Scheme:
    return _stacked_scheme(
        config, _LAYERS, embed="params/params/token_embedder/embedding",
        attn_norm="pre_self_attention_layer_norm/scale",
        ffn_norm="post_self_attention_layer_norm/scale",
        q="self_attention/query/kernel", k="self_attention/key/kernel",
        v="self_attention/value/kernel", o="self_attention/out/kernel",
        gate="mlp/wi_0/kernel", up="mlp/wi_1/kernel",
    )  # fmt: skip


def _stacked_scheme(config: dict[str, Any], at: str, *, embed: str, **parts: str) -> Scheme:
    return Scheme(
        embed=embed,
        **{part: at + name for part, name in parts.items()},
        layer="",
        n_layers=config["num_hidden_layers"],
        n_heads=config["num_attention_heads"],
        n_kv_heads=config["num_key_value_heads"],
    )


def llama_to_flax_scan(root: Path) -> Conversion:
    """A llama of transformers, and the tree of flax's nn.scan over its blocks in Orbax."""
    source = saved(tiny("llama", n_layers=12), root / "hf", "float32")
    config = config_of(source)
    hf = tensors_of(source)
    layers = range(config["num_hidden_layers"])
    filled = {
        "params/embed/embedding": hf["model.embed_tokens.weight"],
        "params/norm/scale": hf["model.norm.weight"],
        "params/lm_head/kernel": transposed(hf["lm_head.weight"]),
    }
    for name, part in _FLAX_PARTS.items():
        stack = [transposed(hf[f"model.layers.{i}.{part}.weight"]) for i in layers]
        filled[f"{_FLAX}{name}/kernel"] = np.stack(stack)
    for name in _FLAX_NORMS:
        stack = [hf[f"model.layers.{i}.{name}.weight"] for i in layers]
        filled[f"{_FLAX}{name}/scale"] = np.stack(stack)
    initial = flat(_flax_initial(config))
    assert {n: a.shape for n, a in initial.items()} == {n: a.shape for n, a in filled.items()}
    target = write_orbax(filled, root / "flax")
    scheme = _flax_scheme(config)
    return Conversion("hf-llama-to-flax-scan", source, target, filled, write_orbax, scheme)


def _flax_scheme(config: dict[str, Any]) -> Scheme:
    return _stacked_scheme(
        config, _FLAX, embed="params/embed/embedding",
        attn_norm="input_layernorm/scale", ffn_norm="post_attention_layernorm/scale",
        q="self_attn/q_proj/kernel", k="self_attn/k_proj/kernel", v="self_attn/v_proj/kernel",
        o="self_attn/o_proj/kernel", gate="mlp/gate_proj/kernel", up="mlp/up_proj/kernel",
    )  # fmt: skip


def _flax_initial(config: dict[str, Any]) -> Any:
    """Names and shapes as flax itself makes them for a scan over the blocks."""
    import jax
    from flax import linen as nn

    width, d = config["hidden_size"], config["hidden_size"] // config["num_attention_heads"]
    dense = partial(nn.Dense, use_bias=False)

    class Attention(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            q = dense(width, name="q_proj")(x)
            for name in ("k_proj", "v_proj"):
                dense(config["num_key_value_heads"] * d, name=name)(x)
            return dense(width, name="o_proj")(q)

    class Mlp(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            gate = dense(config["intermediate_size"], name="gate_proj")(x)
            up = dense(config["intermediate_size"], name="up_proj")(x)
            return dense(width, name="down_proj")(nn.silu(gate) * up)

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = x + Attention(name="self_attn")(nn.RMSNorm(name="input_layernorm")(x))
            x = x + Mlp(name="mlp")(nn.RMSNorm(name="post_attention_layernorm")(x))
            return x, None

    class Model(nn.Module):
        @nn.compact
        def __call__(self, tokens: Any) -> Any:
            x = nn.Embed(config["vocab_size"], width, name="embed")(tokens)
            scan = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True},
                           length=config["num_hidden_layers"])  # fmt: skip
            x, _ = scan(name="layers")(x)
            return dense(config["vocab_size"], name="lm_head")(nn.RMSNorm(name="norm")(x))

    tokens = np.zeros((1, 2), np.int32)
    shapes = jax.eval_shape(Model().init, jax.random.key(0), tokens)
    return jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)


# --- faults


def _along(axis: int, order: Callable[[int], list[int]]) -> Callable[[Tensors, Scheme], Tensors]:
    """All stacks with their layers in another order."""

    def plant(t: Tensors, s: Scheme) -> Tensors:
        places = order(s.n_layers)
        return {
            name: np.ascontiguousarray(np.take(a, places, axis)) if "/layers/" in name else a
            for name, a in t.items()
        }

    return plant


def _by_name(n: int) -> list[int]:
    return [int(text) for text in sorted(str(i) for i in range(n))]


def _kernel_transposed(t: Tensors, s: Scheme) -> Tensors:
    return t | {s.o: transposed(t[s.o])}  # square: nothing in its shape tells


def scan_faults(axis: int) -> dict[str, Fault]:
    """Faults of a target whose layers are stacked on an axis."""
    return {
        "gate and up swapped": Fault(lambda t, s: exchange(t, s.gate, s.up), ("up|gate|wi_[01]",)),
        "k and v swapped": Fault(lambda t, s: exchange(t, s.k, s.v), ("k|v",)),
        "norm gains swapped": Fault(lambda t, s: exchange(t, s.attn_norm, s.ffn_norm), ("norm",)),
        "layers off by one": Fault(
            _along(axis, lambda n: [(i - 1) % n for i in range(n)]), ("by one place",)
        ),
    }


FLAX_FAULTS: dict[str, Fault] = {
    **scan_faults(0),
    "layers in the order of their names": Fault(_along(0, _by_name), ("10 before 2",)),
    "square kernels not transposed": Fault(_kernel_transposed, ("transpose",)),
}
