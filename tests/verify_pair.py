"""A small checkpoint, its conversion (renamed, transposed), and the claims that say so."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

CLAIMS = """
schema = "lockstep.claims/1"
title = "two layers, renamed and transposed"

[[claim]]
group = "params"
target = "blocks.{layer:int}.{kind:str}"
source = "model.layers.{layer}.{kind}.weight"
transform = ["transpose()"]

[[claim]]
group = "norms"
target = "final_norm"
source = "model.norm.weight"

[[claim]]
group = "step"
target = "step"
source = "step"
"""


@dataclass(frozen=True)
class Pair:
    """Where the files of a conversion are."""

    source: Path
    target: Path
    claims: Path

    @property
    def words(self) -> list[str]:
        """The command line that proves it."""
        return ["verify", str(self.source), str(self.target), "--claims", str(self.claims)]

    def change(self, **arrays: Any) -> None:
        """Writes the target again with other arrays; None leaves one out."""
        kept = {**converted(source_arrays()), **arrays}
        save_file({k: v for k, v in kept.items() if v is not None}, self.target)


def source_arrays() -> dict[str, Any]:
    rng = np.random.default_rng(3)
    found: dict[str, Any] = {
        f"model.layers.{layer}.{kind}.weight": rng.standard_normal((6, 10)).astype(np.float32)
        for layer in (0, 1)
        for kind in ("gate", "up")
    }
    found["model.norm.weight"] = rng.standard_normal(10).astype(np.float32)
    found["step"] = np.array([175_000], np.int64)
    return found


def converted(arrays: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for name, array in arrays.items():
        parts = name.split(".")
        if parts[:2] == ["model", "layers"]:
            found[f"blocks.{parts[2]}.{parts[3]}"] = np.ascontiguousarray(array.T)
        else:
            found["final_norm" if parts[0] == "model" else name] = array
    return found


def make_pair(folder: Path, claims: str = CLAIMS) -> Pair:
    """Writes both checkpoints and the claims."""
    pair = Pair(folder / "old.safetensors", folder / "new.safetensors", folder / "claims.toml")
    save_file(source_arrays(), pair.source)
    save_file(converted(source_arrays()), pair.target)
    pair.claims.write_text(claims)
    return pair
