"""What must not fail: the same values in another order, cut, container or alignment.

Each takes the good conversion of a case and a place for what it writes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from conversions import gguf_files, toy
from conversions.conversion import Array, Conversion, Tensors
from conversions.hf_models import config_of
from conversions.trees import nested


def other_order(made: Conversion, root: Path) -> Conversion:
    """A .pt target whose tensors lie in another order than the source's."""
    turned = dict(reversed(list(made.tensors.items())))
    return replace(made, target=made.write(turned, root / "turned.pt"))


def other_container(made: Conversion, root: Path) -> Conversion:
    """An npz target, compressed, of which names and types are those of a safetensors file."""
    target = root / "rekeyed.npz"
    np.savez_compressed(target, **made.tensors)
    return replace(made, target=target)


def sharded(made: Conversion, root: Path) -> Conversion:
    """An HF target in many shards with an index, as huggingface_hub cuts it."""
    import torch
    from huggingface_hub import save_torch_state_dict

    from conversions.meta_llama import torch_tensor

    state: dict[str, torch.Tensor] = {n: torch_tensor(a) for n, a in made.tensors.items()}
    target = made.write({}, root / "sharded")  # for its config.json
    (target / "model.safetensors").unlink()
    save_torch_state_dict(state, target, max_shard_size=20_000)
    assert len(list(target.glob("*.safetensors"))) > 3
    return replace(made, target=target)


def other_alignment(made: Conversion, root: Path) -> Conversion:
    """A GGUF file whose tensors are aligned to 256 bytes."""
    config = config_of(made.source)
    write = partial(gguf_files.write_gguf, config=config, outtype="F32", alignment=256)
    return replace(made, target=write(made.tensors, root / "aligned.gguf"))


def other_chunks(made: Conversion, root: Path) -> Conversion:
    """An Orbax target in many small chunks."""
    import jax
    import orbax.checkpoint as ocp

    tree = nested(made.tensors)
    small = ocp.SaveArgs(chunk_byte_size=256)
    save_args = jax.tree.map(lambda _: small, tree)
    target = root / "chunked"
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        args = ocp.args.PyTreeSave(tree, save_args=save_args)
        checkpointer.save(target.resolve(), args=args)
    return replace(made, target=target)


def equal_nans(made: Conversion, root: Path) -> Conversion:
    """NaN of several payloads, infinities and -0 on both sides, and two equal leaves."""
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


def head_beside_its_tie(made: Conversion, root: Path) -> Conversion:
    """An HF target that stores its tied head a second time."""
    head = {"lm_head.weight": made.tensors[made.scheme.embed].copy()}
    return replace(made, target=made.write(made.tensors | head, root / "untied"))


def _target_name(name: str) -> str:
    """Where the two odd leaves of the source go; no other name is changed."""
    found = name.replace("model.layers.", "layers.").replace("mlp.up_proj", "feed_forward.w3")
    return found if found.startswith(("params/layers.1.feed", "params/layers.2.feed")) else ""


def _read(path: Path) -> Tensors:
    from safetensors.numpy import load_file

    return dict(load_file(path))


HARMLESS: dict[str, tuple[str, Callable[[Conversion, Path], Conversion]]] = {
    "tensors in another order": ("HF to megatron", other_order),
    "another container, compressed": ("toy", other_container),
    "another cut into shards": ("megatron to HF", sharded),
    "another alignment": ("qwen3 to GGUF", other_alignment),
    "other chunks": ("c49k", other_chunks),
    "equal NaNs, equal leaves": ("toy", equal_nans),
    "a tied head that is stored twice": ("gemma2 from GGUF", head_beside_its_tie),
}
