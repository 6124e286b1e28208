"""A model that can be asked: a compiled program with its weights in place, and its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lockstep.artifacts import RunDir
from lockstep.artifacts.train_config import TrainConfig
from lockstep.artifacts.weights_manifest import WeightsManifest
from lockstep.build import Built, inference_program
from lockstep.engine.memory import available_bytes
from lockstep.engine.packed import (
    Filled,
    StoredParameters,
    fill_parameters,
    packed_type,
    usual_cache,
)
from lockstep.engine.session import InferenceSession
from lockstep.engine.source import Source, open_run, open_source
from lockstep.errors import BudgetError
from lockstep.ir import CacheKind, InferenceShape
from lockstep.tokenizers import Tokenizer

ROWS = 512  # tokens that a pass reads at most
CONTEXT = 4096  # tokens that a sequence may have unless asked for more


@dataclass(frozen=True, kw_only=True)
class OpenModel:
    """A model ready to be asked, and how it came to be."""

    source: Source
    session: InferenceSession
    built: Built
    filled: Filled


@dataclass(frozen=True, slots=True, kw_only=True)
class RunModel:
    """A run's model, ready to generate."""

    config: TrainConfig
    manifest: WeightsManifest
    parameters: StoredParameters  # as the weights file has them; the session's are packed
    tokenizer: Tokenizer
    session: InferenceSession


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What a program is asked to hold, and to read in a pass.

    `context` is by default the model's, but at most CONTEXT. A pass gives as many rows of logits
    as there are slots, or `outs` if these are more. Keys and values are kept as float16 unless all
    weights are float32, or `cache` says otherwise.
    """

    context: int | None = None
    slots: int = 1
    rows: int = ROWS
    outs: int = 1
    cache: CacheKind | None = None

    def of(self, source: Source) -> InferenceShape:
        """The shape of the program of this source."""
        model = source.model
        room = self.context or min(model.config.context, CONTEXT)
        return InferenceShape(
            context=room,
            rows=min(self.rows, self.slots * room),
            slots=self.slots,
            outs=min(max(self.slots, self.outs), self.rows, self.slots * room),
            cache=self.cache or usual_cache(source.parameters, model.shapes),
        )


USUAL = Capacity()


def open_model(name: str, capacity: Capacity = USUAL, *, threads: int | None = None) -> OpenModel:
    """Opens a GGUF file, a Hugging Face directory, hf://... or a run, compiles it, loads it.

    Where a program in Python begins, as the bench does; verbs open the source first, to say more.

    Raises: UsageError, InputError, EnvironmentLacks; BudgetError if it does not fit into memory.
    """
    return load(open_source(name), capacity, threads=threads)


def load(source: Source, capacity: Capacity = USUAL, *, threads: int | None = None) -> OpenModel:
    """The same for a source that is open."""
    model, parameters, shape = source.model, source.parameters, capacity.of(source)
    stored = partial(packed_type, parameters)
    built = inference_program(model.family, model.config, shape, stored=stored, threads=threads)
    expect_room(sum(arena.n_bytes for arena in built.program.manifest.arenas), source.where)
    filled = fill_parameters(
        built.program,
        parameters,
        built.formats,
        shapes=model.shapes,
        content=source.content,
        where=source.where,
    )
    session = InferenceSession(built.program, shape)
    return OpenModel(source=source, session=session, built=built, filled=filled)


def open_run_model(
    run: RunDir,
    *,
    weights: Path | None = None,
    context: int | None = None,
    threads: int | None = None,
) -> RunModel:
    """The promoted weights of a run, or those of a checkpoint, with the run's tokenizer.

    Raises: InputError if weights or tokenizer are missing, damaged or of another run; UsageError
    if the context is more than the model's.
    """
    source = open_run(run, weights=weights)
    assert source.run is not None
    assert source.weights is not None
    tokenizer = Tokenizer.load(run.tokenizer, expect_sha256=source.weights.tokenizer_sha256)
    room = context or source.run.context_len
    opened = load(source, Capacity(context=room, rows=min(64, room)), threads=threads)
    return RunModel(
        config=source.run, manifest=source.weights, parameters=source.parameters,
        tokenizer=tokenizer, session=opened.session,
    )  # fmt: skip


def expect_room(n_bytes: int, where: str) -> None:
    """Refuses a program whose arenas do not fit into what memory is left.

    Raises: BudgetError.
    """
    free = available_bytes()
    if free is not None and n_bytes > free:
        raise BudgetError(
            f"{where}: expected room for {n_bytes >> 20} MiB of weights, caches and results, "
            f"this machine has {free >> 20} MiB left",
            hint="choose a shorter context (--ctx), fewer slots, or a smaller model",
        )
