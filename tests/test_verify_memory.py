"""The budget is the peak of the whole process: measured by the kernel, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lockstep.verify.engine.budget import MIB

TESTS = Path(__file__).parent
N_MARKS = 300

# Written sparse: holes take no disk. Marks make the leaves other than constant, on both sides.
MAKER = """
import json, random
from pathlib import Path

def make(path, leaves, marks):
    header, offset = {}, 0
    for name, (shape, _) in leaves.items():
        size = 4 * shape[0] * shape[1]
        offsets = [offset, offset + size]
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": offsets}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        begin = file.tell()
        file.truncate(begin + offset)
        for name, (shape, turned) in leaves.items():
            for i, j, bits in marks[name]:
                row, column = (j, i) if turned else (i, j)
                place = header[name]["data_offsets"][0] + 4 * (row * shape[1] + column)
                file.seek(begin + place)
                file.write(bits.to_bytes(4, "little"))

def make_pair(folder, rows, columns, n_marks, damage=None):
    random.seed(1)
    marks = {
        name: [(random.randrange(rows), random.randrange(columns), random.getrandbits(32))
               for _ in range(n_marks)]
        for name in ("same", "turned")
    }
    make(folder / "a.safetensors", dict.fromkeys(marks, ((rows, columns), False)), marks)
    if damage:
        marks[damage] += [(rows - 1, columns - 2, 1)]
    leaves = {"same": ((rows, columns), False), "turned": ((columns, rows), True)}
    make(folder / "b.safetensors", leaves, marks)
"""

RUN = """
import json, sys
from dataclasses import asdict
from pathlib import Path
from lockstep.errors import LockstepError
from lockstep.formats.open_store import open_store
from lockstep.verify.engine.budget import memory_now
from lockstep.verify.claim import Claim, Plan
from lockstep.verify.engine.examine import Options, examine
from lockstep.verify.layouts.layout import permute, whole
folder = Path(sys.argv[1])
source, target = (open_store(next(folder.glob(f"{name}.*"))) for name in "ab")
shape = source.leaves["same"].shape
layouts = {"same": whole("same", shape), "turned": permute(whole("turned", shape), (1, 0))}
claims = tuple(Claim(n, "r", "g", n, (n,), layouts[n], text=n) for n in layouts)
options = Options(max_memory_bytes=int(sys.argv[2]), jobs=int(sys.argv[3]), digest=sys.argv[4])
try:
    report = examine(Plan(source, target, claims), options)
    report.save(folder)
    verdicts = {row.target: row.verdict for row in report.claims}
    said = {"verdicts": verdicts, "cost": asdict(report.cost)}
    said["last"] = [list(r.difference.last.source_index) for r in report.claims if r.difference]
except LockstepError as error:
    said = {"error": type(error).__name__, "message": error.message}
print(json.dumps({**said, "peak": memory_now().peak}))
"""


def run(script: str, *args: object) -> Any:
    """What a script prints, in a process whose peak is its own."""
    found = subprocess.run(
        [sys.executable, "-c", script, *map(str, args)],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout) if found.stdout else None


def make_pair(folder: Path, rows: int, columns: int, damage: str | None = None) -> None:
    """Two safetensors files with a leaf that is the same and one that is transposed."""
    run(
        MAKER + "import sys\n"
        f"make_pair(Path(sys.argv[1]), {rows}, {columns}, {N_MARKS}, {damage!r})",
        folder,
    )  # fmt: skip


def held(said: Any, budget: int) -> None:
    """The kernel's peak is within the prediction, and that within the budget."""
    assert said["peak"] <= said["cost"]["predicted_peak_bytes"] <= budget


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize("digest", ["none", "sha256"])
def test_a_pair_of_eight_times_the_budget_is_verified_within_it(
    tmp_path: Path, digest: str
) -> None:
    make_pair(tmp_path, 8192, 8192)  # 512 MiB each
    said = run(RUN, tmp_path, 64 * MIB, 2, digest)
    assert said["verdicts"] == {"same": "EXACT_BITS", "turned": "EXACT_UNDER"}
    held(said, 64 * MIB)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_a_pair_of_4_gib_is_verified_in_64_mib(tmp_path: Path) -> None:
    make_pair(tmp_path, 16384, 32768)
    said = run(RUN, tmp_path, 64 * MIB, 2, "sha256")
    assert said["verdicts"] == {"same": "EXACT_BITS", "turned": "EXACT_UNDER"}
    held(said, 64 * MIB)


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_a_deflated_stream_is_read_in_order_within_the_budget(tmp_path: Path) -> None:
    make_pair(tmp_path, 2048, 8192)
    run(
        "import sys\n"
        "import numpy as np\n"
        "from safetensors.numpy import load_file\n"
        "np.savez_compressed(sys.argv[2], **load_file(sys.argv[1]))\n",
        tmp_path / "a.safetensors",
        tmp_path / "a.npz",
    )
    (tmp_path / "a.safetensors").unlink()
    said = run(RUN, tmp_path, 64 * MIB, 2, "sha256")
    assert said["verdicts"] == {"same": "EXACT_BITS", "turned": "EXACT_UNDER"}
    held(said, 64 * MIB)


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_one_element_in_a_transposed_leaf_is_found_within_the_budget(tmp_path: Path) -> None:
    make_pair(tmp_path, 4096, 8192, damage="turned")
    said = run(RUN, tmp_path, 64 * MIB, 2, "none")
    assert said["verdicts"] == {"same": "EXACT_BITS", "turned": "FAIL"}
    assert said["last"] == [[4095, 8190]]
    held(said, 64 * MIB)


def test_a_budget_below_the_program_itself_is_refused(tmp_path: Path) -> None:
    make_pair(tmp_path, 64, 32)
    said = run(RUN, tmp_path, 16 * MIB, 2, "none")
    assert said["error"] == "BudgetError"
    assert "--max-memory" in said["message"]
