"""A weight that is no number, or infinite: named before anything runs, whatever it is stored as."""

from __future__ import annotations

import math
from pathlib import Path
from typing import get_args

import gguf
import numpy as np
import pytest
from model_directories import byte_level_directory

from lockstep.cli.main import main
from lockstep.engine.export_gguf import ExportType, export_gguf

NAME = "blk.1.ffn_down.weight"

pytestmark = pytest.mark.usefixtures("quick_builds")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("finite")
    source = byte_level_directory(path / "hf", "qwen3", {"width": 64, "ffn": 96})
    for kind in get_args(ExportType):
        export_gguf(source, path / f"{kind}.gguf", kind)
    return path


def spoiled(path: Path, number: float) -> None:
    """Writes it into the last number of a matrix, or into the last scale."""
    half, single = np.float16(number).tobytes(), np.float32(number).tobytes()
    stored = {"F32": single, "F16": half, "BF16": single[2:], "Q8_0": half}[path.stem]
    found = gguf.GGUFReader(path).tensors
    tensor = next(tensor for tensor in found if tensor.name == NAME)
    behind = 34 if path.stem == "Q8_0" else len(stored)  # bytes of a block
    with path.open("r+b") as file:
        file.seek(int(tensor.data_offset + tensor.n_bytes) - behind)
        file.write(stored)


@pytest.mark.parametrize("number", [math.nan, -math.inf])
@pytest.mark.parametrize("kind", get_args(ExportType))
def test_a_packed_weight_that_is_not_finite_is_named(
    kind: str, number: float, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"{kind}.gguf"
    path.write_bytes((model / path.name).read_bytes())
    asked = ["run", str(path), "--raw", "-p", "a", "-n", "2", "--ctx", "32"]
    assert main(asked) == 0
    spoiled(path, number)
    for _ in range(2):  # what is refused is not kept as if it were packed
        assert main(asked) == 4
        assert f"{NAME}: expected finite numbers, got some of its {kind}" in capfd.readouterr().err
    main(["inspect", str(path)])
    assert f"{NAME}: expected finite numbers" in capfd.readouterr().out
