"""Writes a pair of checkpoints that the verification benchmark reads.

python bench/checkpoints.py {safetensors,transposed,orbax,orbax-chunked} FOLDER MIB

Half of each is one matrix, the rest is eight of one size. `new` is `old` under other names; from
Orbax a leading axis of 1 is squeezed on the way, and `bad` is `new` with one bit of the matrix off.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MIB = 1 << 20
COLUMNS = 4096
N_SMALL = 8
ORBAX_CLAIMS = """schema = "lockstep.claims/1"
title = "re-keyed and squeezed"
[[claim]]
group = "params"
target = "params/{name:any}"
source = "{name}"
transform = ["squeeze(0)"]
"""
TRANSPOSED_CLAIMS = """schema = "lockstep.claims/1"
title = "transposed"
[[claim]]
group = "params"
target = "emb"
source = "emb"
transform = ["transpose()"]
"""


def arrays(n_mib: int) -> dict[str, NDArray[np.float32]]:
    """Drawn weights; no NaN, for which the peer gives false alarms, even where they are equal."""
    rng = np.random.default_rng(0)
    sizes = {"emb": n_mib // 2} | {f"w{i}": n_mib // 2 // N_SMALL for i in range(N_SMALL)}
    return {
        name: rng.standard_normal((size * MIB // 4 // COLUMNS, COLUMNS), np.float32)
        for name, size in sizes.items()
    }


def write_safetensors(folder: Path, n_mib: int) -> None:
    """Two files of the same bytes."""
    from safetensors.numpy import save_file

    tensors = arrays(n_mib)
    for name in ("old", "new"):
        save_file(tensors, folder / f"{name}.safetensors")


def write_transposed(folder: Path, n_mib: int) -> None:
    """One matrix and its transposition."""
    from safetensors.numpy import save_file

    (folder / "claims.toml").write_text(TRANSPOSED_CLAIMS)
    matrix = arrays(n_mib)["emb"]
    save_file({"emb": matrix}, folder / "old.safetensors")
    save_file({"emb": np.ascontiguousarray(matrix.T)}, folder / "new.safetensors")


def write_orbax(folder: Path, n_mib: int, chunk_bytes: int | None = None) -> None:
    """A flat tree with leading axes of 1, the same squeezed and nested, and a damaged one."""
    import jax
    import orbax.checkpoint as ocp

    def save(name: str, tree: Any) -> None:
        each = ocp.SaveArgs(chunk_byte_size=chunk_bytes)
        args = ocp.args.PyTreeSave(tree, save_args=jax.tree.map(lambda _: each, tree))
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            checkpointer.save((folder / name).resolve(), args)

    (folder / "claims.toml").write_text(ORBAX_CLAIMS)
    tensors = arrays(n_mib)
    save("old", {name: a[None] for name, a in tensors.items()})
    save("new", {"params": tensors})
    tensors["emb"].view(np.uint32)[-1, -2] ^= 1
    save("bad", {"params": tensors})


def main() -> None:
    """Writes what the arguments ask for."""
    kind, folder, n_mib = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "safetensors":
        write_safetensors(folder, n_mib)
    elif kind == "transposed":
        write_transposed(folder, n_mib)
    else:
        write_orbax(folder, n_mib, 32 * MIB if kind == "orbax-chunked" else None)


if __name__ == "__main__":
    main()
