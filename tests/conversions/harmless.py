"""What must not fail: the same values in another order, cut, container or alignment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from conversions import c49k, fused, gguf_files, toy
from conversions.conversion import Array, Conversion, Tensors
from conversions.hf_models import config_of
from conversions.trees import nested


def other_order(root: Path) -> Conversion:
    """A .pt target whose tensors lie in another order than the source's."""
    made = fused.hf_to_megatron(root)
    turned = dict(reversed(list(made.tensors.items())))
    return replace(made, target=made.write(turned, root / "turned.pt"))


def other_container(root: Path) -> Conversion:
    """An npz target, compressed, of which names and types are those of a safetensors file."""
    made = toy.toy(root)
    target = root / "rekeyed.npz"
    np.savez_compressed(target, **made.tensors)
    return replace(made, target=target)


def sharded(root: Path) -> Conversion:
    """An HF target in many shards with an index, as huggingface_hub cuts it."""
    import torch
    from huggingface_hub import save_torch_state_dict

    from conversions.meta_llama import torch_tensor

    made = fused.megatron_to_hf(fused.hf_to_megatron(root), root)
    state: dict[str, torch.Tensor] = {n: torch_tensor(a) for n, a in made.tensors.items()}
    target = made.write({}, root / "sharded")  # for its config.json
    (target / "model.safetensors").unlink()
    save_torch_state_dict(state, target, max_shard_size=20_000)
    assert len(list(target.glob("*.safetensors"))) > 3
    return replace(made, target=target)


def other_alignment(root: Path) -> Conversion:
    """A GGUF file whose tensors are aligned to 256 bytes."""
    made = gguf_files.hf_to_gguf("qwen3", root, stored="BF16", outtype="BF16")
    config = config_of(made.source)
    write = partial(gguf_files.write_gguf, config=config, outtype="BF16", alignment=256)
    return replace(made, target=write(made.tensors, root / "aligned.gguf"))


def other_chunks(root: Path) -> Conversion:
    """An Orbax target in many small chunks."""
    import jax
    import orbax.checkpoint as ocp

    made = c49k.c49k(root)
    tree = nested(made.tensors)
    small = ocp.SaveArgs(chunk_byte_size=256)
    save_args = jax.tree.map(lambda _: small, tree)
    target = root / "chunked"
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        args = ocp.args.PyTreeSave(tree, save_args=save_args)
        checkpointer.save(target.resolve(), args=args)
    return replace(made, target=target)


def equal_nans(root: Path) -> Conversion:
    """NaN of several payloads, infinities and -0 on both sides, and two equal leaves."""
    made = toy.toy(root)
    up = "feed_forward.w3.weight"
    odd = np.array([0x7FC00000, 0x7F800001, 0xFFC12345, 0x7F800000, 0x80000000, 1], np.uint32)
    changed = dict(made.tensors)
    for layer in (1, 2):
        w: Array = made.tensors[f"params/layers.1.{up}"].copy()
        w.view(np.uint32)[3, :6] = odd
        changed[f"params/layers.{layer}.{up}"] = w
    back = {name: changed.get(_target_name(name), a) for name, a in _read(made.source).items()}
    source = toy.write_safetensors(back, root / "odd-source.safetensors")
    target = toy.write_safetensors(changed, root / "odd-target.safetensors")
    return replace(made, source=source, target=target, tensors=changed)


def _target_name(name: str) -> str:
    """Where the two odd leaves of the source go; no other name is changed."""
    found = name.replace("model.layers.", "layers.").replace("mlp.up_proj", "feed_forward.w3")
    return found if found.startswith(("params/layers.1.feed", "params/layers.2.feed")) else ""


def _read(path: Path) -> Tensors:
    from safetensors.numpy import load_file

    return dict(load_file(path))


HARMLESS: dict[str, Callable[[Path], Conversion]] = {
    "tensors in another order": other_order,
    "another container, compressed": other_container,
    "another cut into shards": sharded,
    "another alignment": other_alignment,
    "other chunks": other_chunks,
    "equal NaNs, equal leaves": equal_nans,
}
