"""Laws of every family in generated C: as near the truth as transformers, prefill = decode."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from family_harness import (
    EVERY_CONFIG,
    Batch,
    batch_inputs,
    differences,
    drawn_batch,
    drawn_parameters,
)

from lockstep.build import Built, OptimizerSpec, inference_program, training_program
from lockstep.engine.packed import place_arrays
from lockstep.families import FAMILIES, Family
from lockstep.ir import Array, InferenceShape

pytestmark = pytest.mark.usefixtures("quick_builds")

# Every op may err twice as much as PyTorch's (law 3 of the ops); the other factor of two is chance,
# for tensors of some ten elements. Root mean squares are compared, because the largest error of a
# tensor is mostly luck: over 24 batches our rms was 1.0 times PyTorch's in the median, 2.6 at most.
K = 4.0
# Below the rounding of its largest element, an error of transformers says nothing about a tensor.
ROUNDING = 2.0**-24
VANISHING = 2.0**-40  # beside the largest: of float64 that is rounding, too
# Relative to the largest: float32 sums of the same products, but in another order.
SUMMED_IN_ANOTHER_ORDER = 4e-6


def step(built: Built, parameters: dict[str, Array], batch: Batch) -> dict[str, Array]:
    """Loss, logits and gradients of one call of a program that keeps its values."""
    program = built.program
    for id, array in {**parameters, **batch_inputs(batch)}.items():
        program.view(id)[...] = array
    program.view("accumulate")[...] = 0
    program.call("init")
    program.call("step")
    found = {id: program.view(f"{id}@grad").copy() for id in parameters}
    found["loss"] = program.view("loss.sum") / batch.n_targets
    found["logits"] = program.view("head").reshape(*batch.tokens_BT.shape, -1).copy()
    return found


def transformers_answer(
    family: Family[Any], config: Any, batch: Batch, precision: Any
) -> dict[str, Array]:
    from lockstep.oracle import hf_model

    oracle = hf_model(family, config, drawn_parameters(family, config), precision=precision)
    found = oracle.losses_and_gradients(batch.tokens_BT, batch.targets_BT)
    return {"loss": np.array(found.loss), "logits": found.logits, **found.gradients}


def excesses(family: Family[Any], config: Any, built: Built, batch: Batch) -> dict[str, float]:
    """For each tensor, our error over the error that we may have; both against float64."""
    truth = transformers_answer(family, config, batch, "float64")
    theirs = transformers_answer(family, config, batch, "float32")
    ours = step(built, drawn_parameters(family, config), batch)
    assert ours.keys() == theirs.keys() == truth.keys()
    assert len(ours) == len(family.weights(config)) + 2
    found = {}
    sizes = {name: float(np.abs(exact).max()) for name, exact in truth.items()}
    largest = max(size for name, size in sizes.items() if name not in ("loss", "logits"))
    for name, exact in truth.items():
        # One token alone gives queries no gradient: what is left is the rounding of what cancelled.
        vanishes = sizes[name] < VANISHING * largest
        size = largest if vanishes else sizes[name]
        bound = K * max(rms(theirs[name] - exact), ROUNDING * size)
        found[name] = rms(ours[name] - exact) / bound
    return found


def rms(error: Array) -> float:
    """The root mean square; infinite where one is not finite."""
    return float(np.sqrt(np.mean(np.square(error)))) if np.isfinite(error).all() else np.inf


# Two that together have every feature; a build takes seconds.
PLAIN = ("qwen3: tiny", "llama: tied, biased, scaled", "gemma3: tiny")


@pytest.mark.torch
@pytest.mark.parametrize(
    ("family", "config"),
    [
        pytest.param(*p.values, id=p.id, marks=[] if p.id in PLAIN else [pytest.mark.slow])
        for p in EVERY_CONFIG
    ],
)
def test_the_program_is_as_near_the_truth_as_transformers(family: Family[Any], config: Any) -> None:
    batch = drawn_batch(config, 2, 11)
    built = training_program(
        family, config, batch=2, tokens=11, optimizer=OptimizerSpec(), mode="keep"
    )
    found = excesses(family, config, built, batch)
    assert max(found.values()) <= 1.0, found


# Corners: one row, one layer, heads of their own keys, widths that fill no vector and no panel.
CORNERS: list[tuple[str, dict[str, Any], int, int]] = [
    ("qwen3", {"vocab": 2}, 1, 1),
    ("llama", {"head_dim": 6, "heads": 5, "kv_heads": 5, "width": 20, "ffn": 3}, 3, 7),
    ("qwen3", {"head_dim": 10, "heads": 3, "kv_heads": 1, "width": 33, "vocab": 33}, 1, 33),
    ("qwen3", {"head_dim": 70, "kv_heads": 1, "width": 65, "ffn": 257, "vocab": 259}, 1, 131),
    ("llama", {"head_dim": 256, "heads": 1, "kv_heads": 1, "width": 16}, 2, 9),
]


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize(("name", "sizes", "n_sequences", "n_tokens"), CORNERS)
def test_corners_are_as_near_the_truth_as_transformers(
    name: str, sizes: dict[str, Any], n_sequences: int, n_tokens: int
) -> None:
    family = FAMILIES[name]
    plain = {"vocab": 17, "width": 24, "ffn": 20, "heads": 2, "kv_heads": 2, "head_dim": 12}
    config = family.Config(**{**plain, "layers": 1, "context": 140, **sizes})
    batch = drawn_batch(config, n_sequences, n_tokens)
    batch.targets_BT[0, -1] = 0  # at least one counts
    built = training_program(
        family, config, batch=n_sequences, tokens=n_tokens, optimizer=OptimizerSpec(), mode="keep"
    )
    found = excesses(family, config, built, batch)
    assert max(found.values()) <= 1.0, found


@pytest.mark.torch
def test_a_fault_in_the_emitted_c_is_seen() -> None:
    family = FAMILIES["qwen3"]
    config = family.variants["untied, biased"]

    def patch(source: str) -> str:
        assert "1e-05" in source
        return source.replace("1e-05", "3e-05")  # the eps of every norm

    built = training_program(
        family,
        config,
        batch=1,
        tokens=7,
        optimizer=OptimizerSpec(kind="sgd"),
        mode="keep",
        source_patch=patch,
    )
    found = excesses(family, config, built, drawn_batch(config, 1, 7))
    assert max(found.values()) > 1.0


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_prefill_equals_cached_decode_bit_for_bit(family: Family[Any]) -> None:
    config = family.TINY
    built = inference_built(family)
    tokens_T = drawn_batch(config, 1, 13).tokens_BT[0]
    whole = run_chunks(built, tokens_T, [13])
    assert np.isfinite(whole).all()
    for chunks in ([1] * 13, [5, 1, 7], [12, 1]):
        assert run_chunks(built, tokens_T, chunks).tobytes() == whole.tobytes()


def test_inference_gives_the_logits_that_training_saw() -> None:
    family = FAMILIES["qwen3"]
    config, batch = family.TINY, drawn_batch(family.TINY, 2, 11)
    training = training_program(
        family, config, batch=2, tokens=11, optimizer=OptimizerSpec(), mode="keep"
    )
    logits_BTV = step(training, drawn_parameters(family, config), batch)["logits"]
    inference = inference_built(family)
    for tokens_T, logits_TV in zip(batch.tokens_BT, logits_BTV, strict=True):
        found = {"logits": run_chunks(inference, tokens_T, [4, 7])}
        assert differences(found, {"logits": logits_TV})["logits"] < SUMMED_IN_ANOTHER_ORDER


def inference_built(family: Family[Any]) -> Built:
    """An inference program of the small config, with its parameters."""
    shape = InferenceShape(context=17, rows=13, outs=13, slots=2)
    built = inference_program(family, family.TINY, shape)
    place_arrays(built.program, drawn_parameters(family, family.TINY))
    built.program.call("init")
    return built


def run_chunks(built: Built, tokens_T: Array, chunks: list[int]) -> Array:
    """The logits of all tokens, fed in chunks into caches that held something else."""
    program, start, found = built.program, 0, []
    for cache in (*built.graph.with_role("cache"), *built.graph.with_role("state")):
        program.view(cache.id)[...] = np.nan
    for n in chunks:
        program.view("tokens")[:n] = tokens_T[start : start + n]
        program.view("positions")[:n] = np.arange(start, start + n)
        program.view("slots")[:n] = 1
        program.view("wanted")[:n] = np.arange(n)
        program.call("forward", rows=n, outs=n)
        found.append(program.view(built.graph.outputs["logits"])[:n].copy())
        start += n
    return np.concatenate(found)
