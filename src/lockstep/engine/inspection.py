"""What a model is and what running it takes, without loading its weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from lockstep.artifacts import expanded
from lockstep.build import lowered_inference
from lockstep.engine.model import USUAL, Capacity, expect_room
from lockstep.engine.packed import expect_readable, packed_type
from lockstep.engine.source import Source
from lockstep.engine.text import expect_template, open_templates, open_tokenizer
from lockstep.formats.gguf import GGUFFile
from lockstep.formats.hf_directory import HFDirectory
from lockstep.ir import Graph, InferenceShape, Plan
from lockstep.native import expect_library


@dataclass(frozen=True, slots=True)
class TensorLine:
    """One tensor of a file."""

    name: str
    stored: str
    shape: tuple[int, ...]
    n_bytes: int


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a file says, whether or not it can be run."""

    where: str
    metadata: Mapping[str, object]
    tensors: tuple[TensorLine, ...]

    @property
    def types(self) -> dict[str, tuple[int, int]]:
        """For each stored type how many tensors have it, and their bytes."""
        counts: Counter[str] = Counter()
        sizes: Counter[str] = Counter()
        for tensor in self.tensors:
            counts[tensor.stored] += 1
            sizes[tensor.stored] += tensor.n_bytes
        return {name: (counts[name], sizes[name]) for name in sorted(counts)}


@dataclass(frozen=True, kw_only=True)
class Running:
    """What running a model takes: its lowered graph, where everything lies, what a token reads."""

    graph: Graph
    plan: Plan
    shape: InferenceShape
    family: str
    config: Any
    n_parameters: int
    weight_bytes_per_token: int
    cache_bytes_per_token: int  # at `depth`
    depth: int

    @property
    def bytes_per_token(self) -> int:
        """What decoding one token reads at this depth."""
        return self.weight_bytes_per_token + self.cache_bytes_per_token


def contents(name: str) -> Contents:
    """What a file or directory holds, also where no family of ours can run it.

    Raises: InputError if it is damaged, or there is no such file; UsageError for the home of
    a user that there is not.
    """
    path = expanded(name)
    found: GGUFFile | HFDirectory = GGUFFile(path) if path.is_file() else HFDirectory(path)
    metadata = found.metadata if isinstance(found, GGUFFile) else found.config
    tensors = (
        TensorLine(id, found.stored[id], tuple(shape), found.raw(id).nbytes)
        for id, shape in found.shapes.items()
    )
    return Contents(where=str(path), metadata=metadata, tensors=tuple(tensors))


def running(source: Source, capacity: Capacity = USUAL, *, depth: int = 0) -> Running:
    """What running the model takes, with that capacity, at that depth of the context.

    Raises: what keeps it from running, in the order in which a run would meet it: InputError if a
    part of it cannot be read, and EnvironmentLacks or BudgetError if this machine lacks something.
    """
    templates = open_templates(source, open_tokenizer(source))
    model = source.model
    shape = capacity.of(source)
    graph, plan, text = lowered_inference(model, shape, partial(packed_type, source.parameters))
    expect_library(text)
    expect_room(sum(plan.arenas.values()), source.where)
    held = graph.with_role("parameter")
    packed = {value.id: value.type.dtype == "u8" for value in held}
    expect_readable(source.parameters, packed, source.where)
    expect_template(templates)
    depth = min(depth, shape.context)
    return Running(
        graph=graph,
        plan=plan,
        shape=shape,
        family=model.family.name,
        config=model.config,
        n_parameters=model.n_parameters,
        weight_bytes_per_token=_weight_bytes(graph),
        cache_bytes_per_token=_cache_bytes(graph, depth, shape.context),
        depth=depth,
    )


def _weight_bytes(graph: Graph) -> int:
    """The bytes of all parameters but tables of which a token reads one row only."""
    readers = graph.consumers()
    total = 0
    for value in graph.with_role("parameter"):
        ops = {node.op.name for node in readers[value.id]}
        if ops and all(op.startswith("embed") for op in ops):
            continue
        total += value.type.n_bytes({})
    return total


def _cache_bytes(graph: Graph, depth: int, context: int) -> int:
    """What attention reads of the caches at this depth, and a recurrent state in full, per slot.

    A layer with a window reads no more positions than that.
    """
    total = sum(state.type.n_bytes({}) for state in graph.with_role("state"))
    for node in graph.nodes:
        window = node.attrs.get("window")
        if not isinstance(window, int):
            continue
        seen = min(depth, window or depth)
        caches = {graph.writes.get(id, id) for id in node.inputs if id is not None}
        held = (graph.inputs[id] for id in caches if id in graph.inputs)
        total += sum(i.value.type.n_bytes({}) * seen // context for i in held if i.role == "cache")
    return total
