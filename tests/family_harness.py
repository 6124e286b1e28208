"""What the laws of the families share: drawn models and batches, and our side of a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from lockstep.families import FAMILIES, Family
from lockstep.ir import Array, Graph, interpret
from lockstep.passes import autodiff

EVERY_CONFIG = [
    pytest.param(family, config, id=f"{family.name}: {name}")
    for family in FAMILIES.values()
    for name, config in family.small_configs.items()
]


@dataclass(frozen=True)
class Held:
    """Tensors in memory, as a source of a checkpoint."""

    tensors: dict[str, Array]
    where: str = "memory"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor."""
        return {name: array.shape for name, array in self.tensors.items()}

    @property
    def stored(self) -> dict[str, str]:
        """The stored type of each tensor."""
        return dict.fromkeys(self.tensors, "F32")

    def read(self, name: str) -> Array:
        """One tensor."""
        return self.tensors[name]

    def raw(self, name: str) -> Array:
        """The bytes of one tensor."""
        array = np.ascontiguousarray(self.tensors[name])
        return array.view(np.uint8).reshape(-1, array.shape[-1] * array.itemsize)


@dataclass(frozen=True)
class Batch:
    """Tokens and targets; -1 is no target."""

    tokens_BT: Array
    targets_BT: Array

    @property
    def n_targets(self) -> int:
        """How many targets count."""
        return int((self.targets_BT >= 0).sum())


def drawn_parameters(family: Family[Any], config: Any, seed: int = 0) -> dict[str, Array]:
    """Parameters of a size at which every part of the model matters, such as a file can keep."""
    rng = np.random.default_rng(seed)
    found = {}
    for w in family.weights(config):
        array = (0 if w.decay else 1) + 0.25 * rng.standard_normal(w.shape)
        array = array.astype(np.float32)
        for form in (w.gguf_form, w.hf_form):
            array = np.ascontiguousarray(form.held(form.stored(array)), np.float32)
        found[w.id] = array
    return found


def drawn_batch(config: Any, batch: int, tokens: int, seed: int = 1) -> Batch:
    """Tokens, and targets of which some do not count."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, config.vocab, (2, batch, tokens), dtype=np.int32)
    ids[1][rng.random((batch, tokens)) < 0.2] = -1
    return Batch(ids[0], ids[1])


def batch_inputs(batch: Batch, n_targets: int | None = None) -> dict[str, Array]:
    """The inputs of a training graph; the gradient is that of the mean over `n_targets`."""
    n_sequences, n_tokens = batch.tokens_BT.shape
    return {
        "tokens": batch.tokens_BT.reshape(-1),
        "targets": batch.targets_BT.reshape(-1),
        "positions": np.tile(np.arange(n_tokens, dtype=np.int32), n_sequences),
        "scale": np.array(1.0 / (n_targets or batch.n_targets)),
    }


def gradients_of(graph: Graph, values: Mapping[str, Array]) -> dict[str, Array]:
    """The gradient of each parameter by its id."""
    written = {target: value for value, target in graph.writes.items()}
    return {p.id: values[written[f"{p.id}@grad"]] for p in graph.with_role("parameter")}


def interpreted(
    graph: Graph, parameters: Mapping[str, Array], batch: Batch
) -> tuple[dict[str, Array], Array]:
    """Loss, logits and gradients of a training graph in float64, by the references of its ops."""
    inputs = {**parameters, **batch_inputs(batch), "accumulate": np.array(0, np.int32)}
    for state in graph.with_role("gradient"):
        inputs[state.id] = np.full(state.type.shape({}), np.nan)  # must not be read
    values = interpret(graph, inputs, sections=("init", "forward", "backward"))
    answers = {"loss": values["loss.sum"] / batch.n_targets, **gradients_of(graph, values)}
    n_sequences, n_tokens = batch.tokens_BT.shape
    return answers, values["head"].reshape(n_sequences, n_tokens, -1)


def training_graph(family: Family[Any], config: Any, batch: Batch) -> Graph:
    """The forward and backward graph for batches of this shape."""
    return autodiff(family.training_graph(config, *batch.tokens_BT.shape))


def differences(
    ours: Mapping[str, Array], theirs: Mapping[str, Array], smallest: float = 0.0
) -> dict[str, float]:
    """max |a-b| / max |b| for each tensor; infinite where either is not finite, or b is 0.

    A tensor whose largest element is below `smallest` is measured by that.

    Raises: AssertionError if names or shapes differ, or there is nothing to compare.
    """
    assert ours.keys() == theirs.keys()
    assert ours
    found = {}
    for name, array in ours.items():
        other = np.asarray(theirs[name])
        assert np.shape(array) == other.shape, name
        finite = np.isfinite(array).all() and np.isfinite(other).all()
        scale = max(float(np.abs(other).max()), smallest)
        found[name] = float(np.abs(array - other).max()) / scale if finite and scale else np.inf
    return found
