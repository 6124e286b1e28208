"""Files that are spoiled, tools that are misused, what must not fail: each with what is said."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from conversions import toy
from conversions.cases import CASES
from conversions.conversion import Conversion, Tensors
from conversions.harmless import HARMLESS
from conversions.parts import write
from lockstep.artifacts.verification import VALUE_EXACT
from lockstep.errors import LockstepError
from lockstep.verify import Options, check
from lockstep.verify.api import Pair, check_pair
from lockstep.verify.claims.claim_file import parse_claims
from lockstep.verify.mutation.selftest import selftest
from lockstep.verify.mutation.selftest_picks import Trial


@dataclass(frozen=True)
class Said:
    """One case: whether it came out as it must, and the words."""

    name: str
    right: bool
    words: str


def files_and_misuse(root: Path) -> tuple[list[Said], list[Said]]:
    """What the self-test makes of a sharded directory, then files of other containers."""
    made = toy.toy(root)
    target = _sharded(made.tensors, root / "shards")
    trial = Trial(per_rule=1, sections=("files", "misuse"))
    record = selftest(Pair(source=made.source, target=target), made.claims, trial)
    found: dict[str, list[Said]] = {"files": [], "misuse": []}
    for row in record.rows:
        if row.outcome != "not applicable" and row.mutation not in _names(found[row.section]):
            words = re.sub(r"\d{15,}", "...", row.words.replace(str(root), "..."))  # times
            found[row.section].append(Said(row.mutation, row.outcome == "caught", words))
    for name, spoil in _SPOILED.items():
        words = _told(*spoil(root / name.replace(" ", "-"))).replace(str(root), "...")
        found["files"].append(Said(name, bool(words), words))
    found["misuse"].append(_optimised(made.source, target, made.claims))
    return found["files"], found["misuse"]


def _names(found: list[Said]) -> set[str]:
    return {said.name for said in found}


def _told(source: Path, target: Path) -> str:
    """Why one checkpoint is not the other; nothing if it is."""
    try:
        report = check_pair(Pair(source=source, target=target), None, Options())
    except LockstepError as error:
        return error.message
    failed = [row for row in report.claims if row.verdict not in VALUE_EXACT]
    said = [f"{row.target}: {row.diagnosis.text if row.diagnosis else row.why}" for row in failed]
    return "; ".join([*said, *(problem.message for problem in report.problems)])


def _sharded(tensors: Tensors, path: Path) -> Path:
    import torch
    from huggingface_hub import save_torch_state_dict

    path.mkdir()
    state = {name: torch.from_numpy(np.array(a)) for name, a in tensors.items()}
    save_torch_state_dict(state, path, max_shard_size=60_000)
    return path


def _optimised(source: Path, target: Path, claims: str) -> Said:
    """A target that differs, verified by python -O."""
    bad = target.parent / "bad"
    shutil.copytree(target, bad)
    shard = max(bad.glob("*.safetensors"))
    with shard.open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))
    start = "from lockstep.cli.main import main; raise SystemExit(main())"
    words = [sys.executable, "-O", "-c", start, "verify", str(source), str(bad)]
    done = subprocess.run([*words, "--claims", claims], capture_output=True, text=True, check=False)
    verdict = (done.stdout.splitlines() or [""])[-1].replace(str(target.parent), "...")
    right = done.returncode == 1 and verdict.startswith("VERDICT: FAIL")
    return Said("python -O", right, f"exit code {done.returncode}, {verdict}")


# --- spoiled files: two paths that must not be found equal


def _npz(path: Path) -> tuple[Path, Path]:
    path.mkdir()
    a = np.random.default_rng(0).standard_normal((50, 40)).astype(np.float32)
    for name in ("old", "new"):
        np.savez_compressed(path / f"{name}.npz", w=a)
    return path / "old.npz", _flipped(path / "new.npz", 2000)


def _pt(path: Path) -> tuple[Path, Path]:
    import torch

    path.mkdir()
    w = torch.arange(2000.0)
    for name in ("old", "new"):
        torch.save({"w": w}, path / f"{name}.pt")
    place = (path / "new.pt").read_bytes().index(np.float32(1000).tobytes())
    return path / "old.pt", _flipped(path / "new.pt", place)


def _zarr(path: Path) -> tuple[Path, Path]:
    import tensorstore as ts

    path.mkdir()
    for name in ("old", "new"):
        spec = {
            "driver": "zarr",
            "kvstore": {"driver": "file", "path": str(path / name / "w")},
            "metadata": {"compressor": {"id": "zstd", "level": 3}, "chunks": [10, 40],
                         "shape": [50, 40], "dtype": "<f4"},
        }  # fmt: skip
        store = ts.open(spec, create=True).result()
        store.write(np.random.default_rng(0).standard_normal((50, 40)).astype(np.float32)).result()
        (path / name / ".zgroup").write_text('{"zarr_format": 2}')
    return path / "old", path / "new"


def _zarr_flipped(path: Path) -> tuple[Path, Path]:
    old, new = _zarr(path)
    _flipped(new / "w" / "2.0", 700)
    return old, new


def _zarr_missing(path: Path) -> tuple[Path, Path]:
    old, new = _zarr(path)
    (new / "w" / "3.0").unlink()
    return old, new


def _flipped(path: Path, place: int) -> Path:
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)
    return path


_SPOILED: dict[str, Callable[[Path], tuple[Path, Path]]] = {
    "a bit under deflate, in .npz": _npz,
    "a bit of a record of .pt": _pt,
    "a bit under zstd, in zarr": _zarr_flipped,
    "a chunk of zarr missing": _zarr_missing,
}


# --- what must not fail


def harmless(root: Path) -> Iterator[Said]:
    """The same values in another order, cut, container or alignment, then small cases."""
    for name, (case, change) in HARMLESS.items():
        path = root / name.replace(" ", "-")
        path.mkdir(parents=True)
        made = change(_conversion(case, root), path)
        ready = made.claims if "/" in made.claims else f"ready:{made.claims}"
        report = check(made.source, made.target, ready)
        yield Said(name, report.value_exact, report.verdict)
    for name, (old, new, claims) in _SMALL.items():
        path = root / name.replace(" ", "-")
        source, target = write(old, path / "old.safetensors"), write(new, path / "new.safetensors")
        rules = parse_claims({"schema": "lockstep.claims/1", **claims}, "claims")
        report = check(source, target, rules)
        yield Said(name, report.value_exact, report.verdict)


def _conversion(name: str, root: Path) -> Conversion:
    """A case, made from another one where it is the way back."""
    case, path = CASES[name], root / f"{name} made"
    if path.exists():
        shutil.rmtree(path)
    path.mkdir()
    return case.make(_conversion(case.forth, root), path) if case.forth else case.make(path)


_W = np.arange(12, dtype=np.float32).reshape(3, 4)
_SMALL: dict[str, tuple[Tensors, Tensors, dict[str, object]]] = {
    "a leaf of no elements": (
        {"w": _W, "none": _W[:0]}, {"w": _W, "none": _W[:0]},
        {"claim": [{"target": "{name:str}", "source": "{name}"}]},
    ),
    "a scalar that becomes (1,), declared": (
        {"w": np.array(3, np.float32)}, {"w": np.array([3], np.float32)},
        {"claim": [{"target": "w", "source": "w", "transform": ["unsqueeze(0)"]}]},
    ),
    "an untied copy, declared": (
        {"w": _W}, {"w": _W, "copy": _W},
        {"claim": [{"target": "w", "source": "w"}, {"target": "copy", "source": "w"}],
         "duplicate": [{"source": "w", "reason": "untied"}]},
    ),
    "bf16 widened to f32, declared": (
        {"w": (_W / 3).astype("bfloat16")}, {"w": (_W / 3).astype("bfloat16").astype(np.float32)},
        {"claim": [{"target": "w", "source": "w", "transform": ["widen(F32)"]}]},
    ),
}  # fmt: skip
