"""How the seed's own script compared two Orbax checkpoints, pair by pair, for measurements.

Every leaf but one is a placeholder; the one is restored to a device, squeezed where the pair says
so and compared with `np.array_equal`, which is not bitwise; after a difference both are widened to
float64. The pairs are those of the migration at small size, or of any tree of equal names.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from conversions.conversion import Array


@dataclass(frozen=True)
class Pair:
    """Two leaves by `jax.tree_util.keystr`, and whether the old one has a leading axis of 1."""

    source: str
    target: str
    squeeze: bool = False


def compare(source: Path, target: Path, pairs: Iterable[Pair]) -> dict[str, str]:
    """What each pair that is not equal differs in, by the name of its target."""
    found = {}
    for pair in pairs:
        a, b = _restored(source, pair.source), _restored(target, pair.target)
        a = np.squeeze(a, axis=0) if pair.squeeze else a
        if a.shape != b.shape or a.dtype != b.dtype:
            found[pair.target] = f"{a.shape} {a.dtype} and {b.shape} {b.dtype}"
        elif not np.array_equal(a, b):
            apart = np.abs(a.astype(np.float64) - b.astype(np.float64))
            found[pair.target] = f"{np.count_nonzero(a != b)} differ by up to {apart.max():.3e}"
    return found


def _restored(path: Path, wanted: str) -> Array:
    """One leaf, on the one device, with all others left out."""
    import jax
    import orbax.checkpoint as ocp

    sharding = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])
    listed = ocp.PyTreeCheckpointHandler().metadata(path.resolve()).tree

    def item(at: Any, leaf: Any) -> Any:
        if jax.tree_util.keystr(at) != wanted:
            return ocp.PLACEHOLDER
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    def how(at: Any, leaf: Any) -> Any:
        if jax.tree_util.keystr(at) != wanted:
            return ocp.RestoreArgs()
        return ocp.ArrayRestoreArgs(sharding=sharding, dtype=leaf.dtype)

    by_path = jax.tree_util.tree_map_with_path
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        args = ocp.args.PyTreeRestore(by_path(item, listed), restore_args=by_path(how, listed))
        restored = checkpointer.restore(path.resolve(), args=args)
    (leaf,) = (a for a in jax.tree.leaves(restored) if a is not ocp.PLACEHOLDER)
    return np.asarray(leaf)


def keystr(name: str) -> str:
    """`a/[0]/b` as jax spells the same path in a restored tree."""
    steps = (s if s.startswith("[") else f"['{s}']" for s in name.split("/"))
    return "".join(steps)
