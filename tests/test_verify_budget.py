"""The whole command within a budget: interpreter, claims, reading, digests and the record.

The 4 GiB pair and the other formats: `pytest -m slow -s tests/test_verify_budget.py`.
"""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flip_formats import silent_jax
from safetensors.numpy import save_file

from lockstep.errors import BudgetError
from lockstep.verify.api import check
from lockstep.verify.engine import reading
from lockstep.verify.engine.budget import MIB

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")

N_MARKS = 200
Marks = dict[str, list[tuple[int, int, int]]]
RUN = """
import sys
from lockstep.cli.main import main
code = main(sys.argv[1:])
lines = open("/proc/self/status").read().splitlines()
(peak,) = (line.split()[1] for line in lines if line.startswith("VmHWM"))
print(code, int(peak) * 1024, file=sys.stderr)
"""
CLAIMS = """
schema = "lockstep.claims/1"
[[claim]]
group = "same"
target = "same"
source = "same"
[[claim]]
group = "turned"
target = "turned"
source = "turned"
transform = ["transpose()"]
[[claim]]
group = "fused"
target = "fused"
sources = ["left", "right"]
transform = ["concat(1)"]
"""


def verify(folder: Path, budget: int, *more: str) -> tuple[int, dict[str, Any], int]:
    """The exit code, the record and the peak of `lockstep verify` in a process of its own."""
    (old,), (new,) = (list(folder.glob(f"{name}.*")) for name in ("old", "new"))
    words = [str(old), str(new), "--claims", str(folder / "claims.toml")]
    found = subprocess.run(
        [sys.executable, "-c", RUN, "verify", *words, "--max-memory", str(budget), "--json", *more],
        capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip
    *_, last = found.stderr.splitlines() or [""]
    assert last.split()[0].isdigit(), found.stderr
    code, peak = map(int, last.split())
    return code, json.loads(found.stdout), peak


def marks_of(names: list[str], rows: int, columns: int) -> Marks:
    """Words at random places; the rest of a leaf is a hole of zeros."""
    rng = random.Random(5)
    return {
        name: [
            (rng.randrange(rows), rng.randrange(columns), rng.getrandbits(32))
            for _ in range(N_MARKS)
        ]
        for name in names
    }


def write_sparse(path: Path, shapes: dict[str, tuple[int, int]], marks: Marks) -> None:
    """A safetensors file of float32 that takes little room on the disk."""
    header, places, end = {}, {}, 0
    for name, (rows, columns) in shapes.items():
        places[name], end = end, end + 4 * rows * columns
        offsets = [places[name], end]
        header[name] = {"dtype": "F32", "shape": [rows, columns], "data_offsets": offsets}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        begin = file.tell()
        file.truncate(begin + end)
        for name, words in marks.items():
            for i, j, bits in words:
                file.seek(begin + places[name] + 4 * (i * shapes[name][1] + j))
                file.write(bits.to_bytes(4, "little"))


def write_pair(folder: Path, rows: int, columns: int) -> int:
    """A leaf that is the same, one transposed, two that are one; the bytes of one side."""
    names = ["same", "turned", "left", "right"]
    marks = marks_of(names, rows, columns)
    write_sparse(folder / "old.safetensors", dict.fromkeys(names, (rows, columns)), marks)
    converted = {
        "same": marks["same"],
        "turned": [(j, i, bits) for i, j, bits in marks["turned"]],
        "fused": marks["left"] + [(i, j + columns, bits) for i, j, bits in marks["right"]],
    }
    shapes = {"same": (rows, columns), "turned": (columns, rows), "fused": (rows, 2 * columns)}
    write_sparse(folder / "new.safetensors", shapes, converted)
    (folder / "claims.toml").write_text(CLAIMS)
    return 4 * len(names) * rows * columns


def holds(found: tuple[int, dict[str, Any], int], budget: int, what: str) -> None:
    """Exact, and the kernel's peak of the whole process is below the prediction and the budget."""
    code, record, peak = found
    assert code == 0, record
    assert record["value_exact"] is True
    cost = record["cost"]
    print(
        f"{what}: {cost['bytes_read'] / MIB:.0f} MiB read in {cost['seconds']:.1f} s, peak "
        f"{peak / MIB:.1f} MiB of {budget / MIB:.0f} MiB"
    )
    assert cost["predicted_peak_bytes"] <= budget
    assert peak <= budget


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder whose large files go when the test ends."""
    yield tmp_path
    for path in tmp_path.rglob("*"):
        if path.is_file():
            path.unlink()


def test_eight_times_the_budget_in_one_command(folder: Path) -> None:
    budget = 56 * MIB
    n_bytes = write_pair(folder, 8192, 3584)
    assert n_bytes >= 8 * budget
    holds(verify(folder, budget, "--digest", "none"), budget, "safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_pair_of_4_gib_in_64_mib(folder: Path, jobs: str) -> None:
    budget = 64 * MIB
    assert write_pair(folder, 16384, 16384) == 4 << 30
    holds(verify(folder, budget, "--jobs", jobs), budget, f"4 GiB pair, {jobs} jobs")


def write_old(folder: Path, format: str, arrays: dict[str, Any]) -> None:
    """The source in a format, written by the format's own library."""
    if format == "npz deflated":
        with zipfile.ZipFile(
            folder / "old.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1
        ) as file:
            for name, array in arrays.items():
                with file.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array)
    elif format == "torch":
        torch = pytest.importorskip("torch")
        torch.save({n: torch.from_numpy(a) for n, a in arrays.items()}, folder / "old.pt")
    elif format == "orbax":
        silent_jax()
        import orbax.checkpoint as ocp

        with warnings.catch_warnings(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as saver:
            warnings.simplefilter("ignore")
            saver.save(folder / "old.orbax", arrays)
    else:
        ts = pytest.importorskip("tensorstore")
        for name, array in arrays.items():  # one chunk, however large, as Orbax writes by default
            kvstore: Any = {"driver": "file", "path": f"{folder}/old.zarr/{name}/"}
            compressor = {"id": "zstd", "level": 1}
            metadata = {"chunks": list(array.shape), "compressor": compressor}
            spec = {"driver": "zarr", "kvstore": kvstore, "metadata": metadata}
            store = ts.open(spec, create=True, dtype="float32", shape=array.shape).result()
            store.write(array).result()
        (folder / "old.zarr" / ".zgroup").write_text('{"zarr_format": 2}')


# What the libraries that read the last one take by themselves is part of their budget.
FORMATS = {"torch": 56, "npz deflated": 56, "zarr of one chunk": 80, "orbax": 112}


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_eight_times_the_budget_in_other_formats(folder: Path, format: str) -> None:
    needed = {"zarr of one chunk": ("tensorstore", "zstandard"), "orbax": ("orbax", "zstandard")}
    if missing := [name for name in needed.get(format, ()) if find_spec(name) is None]:
        pytest.skip(f"{', '.join(missing)} is not installed")
    budget = FORMATS[format] * MIB
    rows, columns = 8192, 128 * FORMATS[format]
    marks = marks_of(["same", "turned"], rows, columns)
    arrays = {name: np.zeros((rows, columns), np.float32) for name in marks}
    for name, words in marks.items():
        for i, j, bits in words:
            arrays[name].view(np.uint32)[i, j] = bits
    write_old(folder, format, arrays)
    turned = [(j, i, bits) for i, j, bits in marks["turned"]]
    shapes = {"same": (rows, columns), "turned": (columns, rows)}
    write_sparse(folder / "new.safetensors", shapes, {**marks, "turned": turned})
    text, _, _ = CLAIMS.partition('[[claim]]\ngroup = "fused"')
    (folder / "claims.toml").write_text(text)
    assert sum(a.nbytes for a in arrays.values()) >= 8 * budget
    holds(verify(folder, budget), budget, format)


# --- refused before anything is read


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of all stretches that the engine reads from now on."""
    found: list[int] = []
    read = reading.Files.read

    def counted(self: reading.Files, path: Path, offset: int, out: Any) -> None:
        found.append(len(out))
        read(self, path, offset, out)

    monkeypatch.setattr(reading.Files, "read", counted)
    return found


def test_what_does_not_fit_is_refused_by_leaf_before_anything_is_read(
    tmp_path: Path, reads: list[int]
) -> None:
    h5py = pytest.importorskip("h5py", reason="the extra formats is not installed")
    large = np.zeros((4096, 4096), np.float32)
    with h5py.File(tmp_path / "old.h5", "w") as file:
        file.create_dataset("w", data=large, chunks=large.shape, compression="gzip",
                            compression_opts=1)  # fmt: skip
        file.create_dataset("b", data=large[0])
    save_file({"w": large, "b": large[0]}, tmp_path / "new.safetensors")
    claims = tmp_path / "claims.toml"
    claims.write_text(
        'schema = "lockstep.claims/1"\n[[claim]]\ngroup = "g"\ntarget = "{x:str}"\nsource = "{x}"\n'
    )
    check(tmp_path / "old.h5", tmp_path / "new.safetensors", claims, max_memory_bytes=4 << 30)
    assert reads
    reads.clear()
    code, document, _ = verify(tmp_path, 96 * MIB)
    assert code == 5
    error = document["error"]
    assert error["message"].startswith("w: ")
    assert int(re.search(r"a need of (\d+)", error["message"])[1]) > large.nbytes
    assert "1 chunks of w decoded" in error["message"]
    assert "--max-memory" in error["hint"]


def test_a_refusal_reads_nothing(tmp_path: Path, reads: list[int]) -> None:
    for name in ("old", "new"):
        save_file({"w": np.zeros((64, 64), np.float32)}, tmp_path / f"{name}.safetensors")
    claims = tmp_path / "claims.toml"
    claims.write_text(
        'schema = "lockstep.claims/1"\n[[claim]]\ngroup = "g"\ntarget = "w"\nsource = "w"\n'
    )
    pair = (tmp_path / "old.safetensors", tmp_path / "new.safetensors", claims)
    with pytest.raises(BudgetError, match="max-memory"):
        check(*pair, max_memory_bytes=8 * MIB)
    assert reads == []
    assert check(*pair, max_memory_bytes=4 << 30).value_exact
    assert sum(reads) >= 2 * 64 * 64 * 4
