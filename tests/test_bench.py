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


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where each model is made once."""
    return tmp_path_factory.mktemp("models")


def make(bench: ModuleType, folder: Path, name: str) -> Path:
    """One tiny model as a directory and as a float32 file, if it is not there yet."""
    made = folder / f"{name}-tiny-F32.gguf"
    options = Namespace(folder=folder, tiny=True, types="F32", seed=1, llama_python=sys.executable)
    if not made.exists():
        bench.make(name, options)
    return made


@pytest.mark.parametrize("name", NAMES)
def test_the_files_weights_are_those_of_transformers(
    bench: ModuleType, models: Path, name: str
) -> None:
    import gguf_tensors

    file = make(bench, models, name)
    model = transformers.AutoModelForCausalLM.from_pretrained(models / f"{name}-tiny-hf")
    values = gguf_tensors.dequantised(str(file))
    for parameter, wanted in model.named_parameters():
        how = gguf_tensors.stored(parameter, model.config)
        found = how.from_gguf(values.pop(how.name))
        # A gain of (1 + w) and a logarithm are stored as other numbers, and rounded once more.
        np.testing.assert_allclose(found, wanted.detach().numpy(), rtol=0, atol=2**-23)
    assert not values


def test_the_same_seed_gives_the_same_bytes(
    bench: ModuleType, models: Path, tmp_path: Path
) -> None:
    digests = set()
    for folder in (models, tmp_path):
        digests.add(hashlib.sha256(make(bench, folder, "llama-135m").read_bytes()).hexdigest())
        bench.learned.cache_clear()  # so that the second one learns again
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


def test_the_proof_of_inference_names_each_bound_that_is_broken(bench: ModuleType) -> None:
    from numerics import Found, broken
    from reference import distance

    rng = np.random.default_rng(0)
    wanted = rng.standard_normal((8, 500))

    def found(file: str, error: float, engine: str = "lockstep") -> Found:
        logits = wanted + error * rng.standard_normal(wanted.shape)
        return Found(file=file, engine=engine, evaluated="at once",
                     distance=distance(logits, wanted))  # fmt: skip

    near, far = found("m-Q8_0", 1e-3), found("m-Q8_0", 3e-2)
    peer = found("m-Q8_0", 1e-2, "llama.cpp")
    assert broken([found("m-F32", 1e-4), near, peer]) == []
    assert "cosine" in broken([found("m-F16", 1e-2)])[0]
    assert "at most llama.cpp's" in broken([far, peer])[0]
    assert "not measured" in broken([near])[0]
    assert "nothing was compared" in broken([peer])[0]
    swapped = wanted.copy()  # two logits of 500: hardly any angle, another token
    swapped[2, :2] = 30.0, 30.1
    wanted[2, :2] = 30.1, 30.0
    flip = Found(file="m-F32", engine="lockstep", evaluated="at once",
                 distance=distance(swapped, wanted))  # fmt: skip
    assert [line.split(": ")[1] for line in broken([flip])] == [
        f"expected flips below 4.5e-02, got {flip.distance.margin:.1e}"
    ]


def test_what_a_token_reads_grows_with_its_depth_up_to_the_window(
    bench: ModuleType, models: Path
) -> None:
    from gguf_tensors import dequantised
    from work import work_of

    file = make(bench, models, "gemma3-270m")
    work = work_of(file, models / "gemma3-270m-tiny-hf")
    near, window, far = (work.bytes_per_token(depth) for depth in (0, 32, 1032))
    row = 2 * 1 * 64 * 2  # keys and values of one head of 64 halves
    assert window - near == 7 * 32 * row
    assert far - window == 1 * 1000 * row  # one layer of seven sees everything
    assert near == sum(values.nbytes for values in dequantised(str(file)).values())
