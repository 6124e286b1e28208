"""The peer of `lockstep verify` for Orbax: restores and compares two checkpoints pair by pair.

python bench/worker_seed.py OLD NEW

Its procedure is that of the seed's verifier: list both trees from their metadata, hold the mapped
names against them, then for each pair read the metadata again, restore the one leaf with a
placeholder for every other, squeeze, and compare shape, type and values with `np.array_equal`; on
failure count what differs and take the largest difference in float64.
Source: research notes on goodfire-ai/param-decomp (tools/verify_c49k_migration.py), section 1.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from protocol import peak_mib

BEGAN = time.perf_counter()

import jax  # noqa: E402  the imports are timed: a whole process is compared with a whole process
import numpy as np  # noqa: E402
import orbax.checkpoint as ocp  # noqa: E402


def metadata_tree(path: Path) -> Any:
    """The tree of a checkpoint with the shape and type of each leaf, without data."""
    return ocp.PyTreeCheckpointHandler().metadata(path).tree


def key(path: Any) -> str:
    """One leaf's name."""
    return jax.tree_util.keystr(path)


def restore_leaf(path: Path, wanted: str) -> np.ndarray:
    """One leaf; every other one is a placeholder."""
    tree = metadata_tree(path)
    on_cpu = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])

    def item_of(at: Any, leaf: Any) -> Any:
        if key(at) != wanted:
            return ocp.PLACEHOLDER
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=on_cpu)

    def args_of(at: Any, _: Any) -> Any:
        return ocp.ArrayRestoreArgs(sharding=on_cpu) if key(at) == wanted else ocp.RestoreArgs()

    item = jax.tree_util.tree_map_with_path(item_of, tree)
    args = jax.tree_util.tree_map_with_path(args_of, tree)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        restored = checkpointer.restore(path, ocp.args.PyTreeRestore(item, restore_args=args))
    (leaf,) = (x for x in jax.tree.leaves(restored) if isinstance(x, jax.Array))
    return np.asarray(leaf)


def agrees(old: Path, new: Path, source: str, target: str) -> bool:
    """Whether a pair has the same shape, type and values."""
    a, b = np.squeeze(restore_leaf(old, source), axis=0), restore_leaf(new, target)
    if a.shape == b.shape and a.dtype == b.dtype and np.array_equal(a, b):
        print(f"PASS {target}", file=sys.stderr)
        return True
    n = int((a != b).sum())
    worst = np.abs(a.astype(np.float64) - b.astype(np.float64)).max()
    print(f"FAIL {target}: {n} elements differ, largest difference {worst}", file=sys.stderr)
    return False


def main() -> None:
    """Compares all pairs and prints one JSON line."""
    old, new = (Path(argument).resolve() for argument in sys.argv[1:])
    sources, targets = (
        {key(at) for at, _ in jax.tree_util.tree_leaves_with_path(metadata_tree(path))}
        for path in (old, new)
    )
    pairs = {f"['params']{source}": source for source in sorted(sources)}
    assert set(pairs) == targets, "the mapping does not cover both trees"
    n_exact = sum(agrees(old, new, source, target) for target, source in pairs.items())
    seconds = time.perf_counter() - BEGAN
    said = {"n_exact": n_exact, "n": len(pairs), "seconds": seconds, "peak_mib": peak_mib()}
    print(json.dumps(said))


if __name__ == "__main__":
    main()
