"""The models and the reference of the inference benchmark."""

from __future__ import annotations

import hashlib
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.torch
BENCH = Path(__file__).parent.parent / "bench"
NAMES = ("qwen3-0.6b", "qwen2-0.5b", "gemma3-270m", "qwen3.5-0.8b", "llama-135m")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that makes models; its neighbours can be imported too."""
    monkeypatch.syspath_prepend(str(BENCH))
    import models

    return models


def make(bench: ModuleType, folder: Path, name: str) -> Path:
    """One tiny model as a directory and as a float32 file."""
    folder.mkdir(exist_ok=True)
    options = Namespace(folder=folder, tiny=True, types="F32", seed=1, llama_python=sys.executable)
    bench.make(name, options)
    return folder / f"{name}-tiny-F32.gguf"


@pytest.mark.parametrize("name", NAMES)
def test_the_files_weights_are_those_of_transformers(
    bench: ModuleType, tmp_path: Path, name: str
) -> None:
    import gguf_tensors

    file = make(bench, tmp_path, name)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / f"{name}-tiny-hf")
    values = gguf_tensors.dequantised(str(file))
    for parameter, wanted in model.named_parameters():
        how = gguf_tensors.stored(parameter, model.config)
        found = how.from_gguf(values.pop(how.name))
        # A gain of (1 + w) and a logarithm are stored as other numbers, and rounded once more.
        np.testing.assert_allclose(found, wanted.detach().numpy(), rtol=0, atol=2**-23)
    assert not values


def test_the_same_seed_gives_the_same_bytes(bench: ModuleType, tmp_path: Path) -> None:
    digests = {
        hashlib.sha256(make(bench, tmp_path / turn, "llama-135m").read_bytes()).hexdigest()
        for turn in ("first", "second")
    }
    assert len(digests) == 1


def test_the_distance_of_logits_names_what_differs(bench: ModuleType) -> None:
    from reference import distance

    wanted = np.random.default_rng(0).standard_normal((8, 50)).astype(np.float32)
    same = distance(wanted, wanted)
    assert (same.relative, same.flips, same.positions) == (0.0, 0, 8)
    turned = wanted.copy()
    turned[3] = -turned[3]
    found = distance(turned, wanted)
    assert found.flips == 1
    assert found.margin > 1
    assert found.least_cosine == pytest.approx(-1)
    with pytest.raises(ValueError, match="finite"):
        distance(np.full_like(wanted, np.nan), wanted)
    with pytest.raises(ValueError, match="expected"):
        distance(wanted[:, 1:], wanted)


def test_what_a_token_reads_grows_with_its_depth_up_to_the_window(
    bench: ModuleType, tmp_path: Path
) -> None:
    from gguf_tensors import dequantised
    from work import work_of

    file = make(bench, tmp_path, "gemma3-270m")
    work = work_of(file, tmp_path / "gemma3-270m-tiny-hf")
    near, window, far = (work.bytes_per_token(depth) for depth in (0, 32, 1032))
    row = 2 * 1 * 64 * 2  # keys and values of one head of 64 halves
    assert window - near == 7 * 32 * row
    assert far - window == 1 * 1000 * row  # one layer of seven sees everything
    assert near == sum(values.nbytes for values in dequantised(str(file)).values())
