"""A four-layer llama in training and its re-keyed copy: what section 6's table is measured on.

The source holds parameters under transformers' names with Adam's moments and the step; the target
has them under Meta's names, with q and k interleaved. Logits are those of transformers' own class
with the weights of a target, taken back to its names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from conversions.conversion import Array, Conversion, Scheme, Tensors, halved
from conversions.faults import ROPE_FAULTS, ROUNDED, WEIGHT_FAULTS, Fault, exchange
from conversions.hf_models import tiny
from conversions.meta_llama import NAMES, OUTER, to_meta

CLAIMS = Path(__file__).parent / "toy.toml"
N_USED = 56  # of 64 rows of the vocabulary; the others are padding that no prompt has
GROUPS = ("params", "mu", "nu")


def toy(root: Path) -> Conversion:
    """Trains for three steps with AdamW, saves, re-keys."""
    model = tiny("llama")
    groups = _trained(model)
    config = model.config.to_dict()
    step = {"step": np.array(3, np.int64)}
    hf = {f"{group}/{name}": a for group, part in groups.items() for name, a in part.items()}
    source = write_safetensors(hf | step, root / "train.safetensors")
    tensors = {
        f"{group}/{name}": np.ascontiguousarray(a)
        for group, part in groups.items()
        for name, a in to_meta(part, config).items()
        if name != "rope.freqs"
    }
    target = write_safetensors(tensors | step, root / "rekeyed.safetensors")
    write = write_safetensors
    return Conversion(str(CLAIMS), source, target, tensors | step, write, _scheme(config))


def write_safetensors(tensors: Tensors, path: Path) -> Path:
    """One safetensors file."""
    from safetensors.numpy import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: np.asarray(a, order="C") for name, a in tensors.items()}, path)
    return path


def logits(tensors: Tensors) -> Array:
    """transformers' logits (T, V) for one fixed prompt, with the weights of a target."""
    import torch

    model = tiny("llama")
    model.load_state_dict({name: torch.from_numpy(a) for name, a in _to_hf(tensors).items()})
    prompt = torch.from_numpy(np.random.default_rng(1).integers(0, N_USED, (1, 32)))
    with torch.no_grad():
        found: Array = model(prompt).logits[0].double().numpy()
    return found


def _to_hf(tensors: Tensors) -> Tensors:
    found = {hf: tensors[f"params/{meta}"] for meta, hf in OUTER.items()}
    for layer in range(4):
        for meta, hf in NAMES.items():
            w = tensors[f"params/layers.{layer}.{meta}"]
            n_heads = {"wq": 4, "wk": 2}.get(meta.split(".")[1], 0)
            found[f"model.layers.{layer}.{hf}"] = np.array(halved(w, n_heads) if n_heads else w)
    return found


def _trained(model: Any) -> dict[str, Tensors]:
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    rng = np.random.default_rng(0)
    for _ in range(3):
        tokens = torch.from_numpy(rng.integers(0, N_USED, (2, 16)))
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    groups: dict[str, Tensors] = {group: {} for group in GROUPS}
    for name, p in model.named_parameters():
        state = optimizer.state[p]
        for group, a in zip(GROUPS, (p, state["exp_avg"], state["exp_avg_sq"]), strict=True):
            groups[group][name] = a.detach().numpy().copy()
    groups["params"]["model.layers.0.mlp.up_proj.weight"][0, 0] = 0.0  # to turn its sign
    return groups


def _scheme(config: dict[str, Any]) -> Scheme:
    at = "params/layers.{l}."
    return Scheme(
        embed="params/tok_embeddings.weight",
        attn_norm=at + "attention_norm.weight",
        ffn_norm=at + "ffn_norm.weight",
        q=at + "attention.wq.weight",
        k=at + "attention.wk.weight",
        v=at + "attention.wv.weight",
        o=at + "attention.wo.weight",
        gate=at + "feed_forward.w1.weight",
        up=at + "feed_forward.w3.weight",
        layer="layers.{l}.",
        n_layers=config["num_hidden_layers"],
        n_heads=config["num_attention_heads"],
        n_kv_heads=config["num_key_value_heads"],
        rope="interleaved",
    )


def _nu_swapped(t: Tensors, s: Scheme) -> Tensors:
    gate, up = (name.format(l=1).replace("params/", "nu/") for name in (s.gate, s.up))
    return exchange(t, gate, up)


def _moments_exchanged(t: Tensors, s: Scheme) -> Tensors:
    for name in [n for n in t if n.startswith("mu/")]:
        exchange(t, name, name.replace("mu/", "nu/", 1))
    return t


def _moment_transposed(t: Tensors, s: Scheme) -> Tensors:
    name = s.o.format(l=1).replace("params/", "mu/")
    return t | {name: np.ascontiguousarray(t[name].T)}


def _step_changed(t: Tensors, s: Scheme) -> Tensors:
    return t | {"step": t["step"] + 1}


FAULTS: dict[str, Fault] = {
    **{name: WEIGHT_FAULTS[name] for name in list(WEIGHT_FAULTS)[:4]},
    **{name: ROPE_FAULTS[name] for name in list(ROPE_FAULTS)[:1]},
    **{name: WEIGHT_FAULTS[name] for name in list(WEIGHT_FAULTS)[4:6]},
    **ROUNDED,
    **{name: WEIGHT_FAULTS[name] for name in list(WEIGHT_FAULTS)[6:9]},
    "nu of two leaves swapped": Fault(_nu_swapped, ("nu/.*(gate|up)_proj",)),
    **{name: WEIGHT_FAULTS[name] for name in list(WEIGHT_FAULTS)[9:]},
    **{name: ROPE_FAULTS[name] for name in list(ROPE_FAULTS)[1:]},
    "mu and nu exchanged": Fault(_moments_exchanged, ("[mn]u/",)),
    "a moment transposed, its parameter not": Fault(_moment_transposed, ("transpose",)),
    "step changed": Fault(_step_changed),
}
