"""The one function that walks family -> graph -> passes -> C -> program."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from lockstep.artifacts.graph_file import GraphFile
from lockstep.codegen import Emitted, emit, graph_record
from lockstep.errors import UsageError
from lockstep.families import FAMILIES, Family, family_named, family_of_gguf, family_of_hf
from lockstep.formats.gguf import GGUFFile
from lockstep.ir import Graph, InferenceShape, Mode, Plan, Schedule, check
from lockstep.native import Compiler, Manifest, Program, compile_library
from lockstep.native.compiler import Sanitizer, cpu_features
from lockstep.ops import OPS
from lockstep.ops.panels import fingerprint as packing_fingerprint
from lockstep.ops.panels import pack as pack_weight
from lockstep.ops.registry import FILES
from lockstep.passes import (
    OptimizerSpec,
    Target,
    add_optimizer,
    autodiff,
    fuse,
    pack,
    plan_memory,
    quantize,
    schedule,
    take_early,
)
from lockstep.passes.plan_memory import GUARD_BYTES
from lockstep.passes.quantize import PANEL_READERS

__all__ = [
    "FAMILY_NAMES",
    "Built",
    "Model",
    "OptimizerSpec",
    "inference_program",
    "link",
    "lower",
    "lowered_inference",
    "model_of",
    "model_of_gguf",
    "model_of_hf",
    "pack_weight",
    "packing_fingerprint",
    "training_program",
]

FAMILY_NAMES = tuple(FAMILIES)

Patch = Callable[[str], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A program, the lowered graph that it runs, its C text, and the library that was built."""

    program: Program
    graph: Graph
    emitted: Emitted
    library: Path
    formats: Mapping[str, str]  # in which type each weight is packed

    def graph_file(self) -> GraphFile:
        """The lowered graph as the run directory keeps it."""
        document = {"schema": GraphFile.schema, **graph_record(self.graph)}
        return GraphFile.from_document(document, GraphFile.file)


@dataclass(frozen=True, slots=True)
class Model:
    """A family and one of its configurations."""

    family: Family[Any]
    config: Any

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each parameter by its id."""
        return {weight.id: weight.shape for weight in self.family.weights(self.config)}

    @property
    def n_parameters(self) -> int:
        """How many numbers the parameters are."""
        return sum(prod(shape) for shape in self.shapes.values())


def model_of(family: str, settings: Mapping[str, Any]) -> Model:
    """The model that a run's record names: a family and the fields of its config.

    Raises: UsageError if there is no such family, or it has no such configuration.
    """
    found = family_named(family)
    try:
        return Model(found, found.Config(**settings))
    except TypeError as error:
        raise UsageError(
            f"config of {family}: expected its own settings, got others: {error}",
            hint="make the run again with `lockstep init`",
        ) from error


def model_of_hf(config: Mapping[str, object]) -> Model:
    """The model that a config.json describes.

    Raises: InputError if it is none of ours, naming keys that are missing or not supported.
    """
    family = family_of_hf(config)
    return Model(family, family.from_hf(config))


def model_of_gguf(file: GGUFFile) -> Model:
    """The model that a GGUF file holds.

    Raises: InputError if it is none of ours, naming keys that are missing or not supported.
    """
    family = family_of_gguf(file.metadata)
    return Model(family, family.from_gguf(file.metadata, file))


def training_program(
    family: Family[Any],
    config: Any,
    *,
    batch: int,
    tokens: int,
    optimizer: OptimizerSpec,
    mode: Mode = "reuse",
    threads: int | None = None,
    guards: bool = False,
    source_patch: Patch | None = None,
    sanitize: tuple[Sanitizer, ...] = (),
    compiler: Compiler | None = None,
) -> Built:
    """A training program: `init` once, `step` for each microbatch, `update` for each step."""
    graph = family.training_graph(config, batch, tokens)
    decayed = [weight.id for weight in family.weights(config) if weight.decay]
    return link(
        training_graph(graph, optimizer, decayed, guards=guards),
        mode=mode,
        threads=threads,
        guards=guards,
        source_patch=source_patch,
        sanitize=sanitize,
        compiler=compiler,
    )


def inference_program(
    family: Family[Any],
    config: Any,
    shape: InferenceShape,
    *,
    stored: Callable[[str], str] = lambda id: "F32",
    target: Target | None = None,
    mode: Mode = "reuse",
    threads: int | None = None,
    guards: bool = False,
    source_patch: Patch | None = None,
    sanitize: tuple[Sanitizer, ...] = (),
    compiler: Compiler | None = None,
) -> Built:
    """An inference program: `init` once, then `forward` for each pass.

    `stored` says in which format the file has a weight that the program packs; `target` says what
    the CPU can do, by default what this one can.
    """
    graph = take_early(fuse(family.inference_graph(config, shape)))
    formats = packed_formats(graph, stored)
    return link(
        quantize(graph, formats, target or Target.of(cpu_features())),
        formats=formats,
        mode=mode,
        threads=threads,
        guards=guards,
        source_patch=source_patch,
        sanitize=sanitize,
        compiler=compiler,
    )


def packed_formats(graph: Graph, stored: Callable[[str], str]) -> dict[str, str]:
    """The weights that an inference program reads packed, and in which format each is stored."""
    return {
        id: stored(id)
        for node in graph.nodes
        if node.op.name in PANEL_READERS
        for id in [node.inputs[1]]
        if id is not None and id in graph.inputs
    }


def training_graph(
    graph: Graph, optimizer: OptimizerSpec, decayed: Iterable[str], *, guards: bool = False
) -> Graph:
    """The graph of a loss with its gradient and its optimizer, fused."""
    gap_bytes = GUARD_BYTES if guards else 0
    training = add_optimizer(autodiff(graph), optimizer, decayed=set(decayed), gap_bytes=gap_bytes)
    return fuse(training)


def lower(graph: Graph, *, mode: Mode = "reuse", guards: bool = False) -> tuple[Graph, Emitted]:
    """The lowered graph, and its program as text."""
    lowered, order, plan = _planned(graph, mode=mode, guards=guards)
    return lowered, _emitted(lowered, order, plan)


def _emitted(lowered: Graph, order: Schedule, plan: Plan) -> Emitted:
    headers = {name: text for text, name in FILES.items() if name.endswith(".h")}
    sources = {op.name: f"ops/{FILES[op.source]}" for op in OPS.values()}
    return emit(check(lowered, "lowered"), order, plan, headers=headers, files=sources)


def lowered_inference(
    model: Model, shape: InferenceShape, stored: Callable[[str], str]
) -> tuple[Graph, Plan, Callable[[], str]]:
    """The lowered graph of an inference program, its memory plan, and what makes its C text."""
    graph = take_early(fuse(model.family.inference_graph(model.config, shape)))
    formats = packed_formats(graph, stored)
    lowered, order, plan = _planned(quantize(graph, formats, Target.of(cpu_features())))
    return lowered, plan, lambda: _emitted(lowered, order, plan).source


def _planned(
    graph: Graph, *, mode: Mode = "reuse", guards: bool = False
) -> tuple[Graph, Schedule, Plan]:
    lowered = pack(fuse(graph))
    order = schedule(lowered)
    return lowered, order, plan_memory(lowered, order, mode=mode, guards=guards)


def link(
    graph: Graph,
    *,
    formats: Mapping[str, str] | None = None,
    mode: Mode = "reuse",
    threads: int | None = None,
    guards: bool = False,
    source_patch: Patch | None = None,
    sanitize: tuple[Sanitizer, ...] = (),
    compiler: Compiler | None = None,
) -> Built:
    """A program from a graph that has all its sections; `source_patch` edits the C text first."""
    lowered, emitted = lower(graph, mode=mode, guards=guards)
    if source_patch is not None:
        emitted = emitted.patched(source_patch(emitted.source))
    library = compile_library(emitted.source, sanitize=sanitize, compiler=compiler)
    poison = guards and "address" in sanitize
    program = Program(library, Manifest.parse(emitted.manifest), threads=threads, poison=poison)
    return Built(
        program=program, graph=lowered, emitted=emitted, library=library, formats=formats or {}
    )
