"""The proof of an export: it is read back, and must be the model, to every reader that is here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from lockstep.artifacts import Check
from lockstep.build import Model
from lockstep.engine.export_gguf import ExportType
from lockstep.engine.export_hf import HFType
from lockstep.engine.memory import available_bytes
from lockstep.engine.model import Capacity, load
from lockstep.engine.packed import packed_type
from lockstep.engine.source import Source, open_gguf, open_hf
from lockstep.engine.text import open_tokenizer
from lockstep.errors import BudgetError, EnvironmentLacks, GateError, LockstepError
from lockstep.ir import Array
from lockstep.native.compiler import cpu_features
from lockstep.passes import Target
from lockstep.proof.export_logits import (
    Answers,
    Truth,
    greedy_check,
    logits_check,
    probabilities_check,
    truth_of,
)
from lockstep.proof.export_tokenizer import corpus_of, ids_check, ids_of, reader_check
from lockstep.proof.export_weights import (
    OneByOne,
    expected_parameters,
    settings_check,
    weights_check,
)
from lockstep.proof.twin import require_oracle
from lockstep.tokenizers import ModelTokenizer, Tokenizer, begin_ids

# One after the other our engine and transformers hold all parameters as float32, and the referee
# one of them at a time: as read, its bytes as stored, these as float32, and as float64. Beside
# that are torch and transformers and what they leave behind. Measured in BF16: 1171 MiB of 135
# million parameters, and 2873 of Gemma's 268 million, of which 168 are one table.
WEIGHT_BYTES = 4
LEAF_BYTES = 20
TORCH_BYTES = 768 << 20
STEPS = 24  # greedy tokens that are compared
_PLAIN_PROMPT = "The <svg"
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class _Case:
    """An export under proof, and what is asked of it."""

    source: Source
    exported: Source
    wanted: ExportType
    tokenizer: ModelTokenizer
    texts: list[str]
    prompt: list[int]


def prove_gguf(
    source: Source, path: Path, wanted: ExportType, say: Say = lambda text: None
) -> list[Check]:
    """Reads a GGUF file back and compares it with the model that it was made of."""
    say("reading it back")
    try:
        case = _case(source, open_gguf(path), wanted)
        checks = list(_read_back(case))
    except LockstepError as error:
        return [_refused(path, error)]
    if any(check.verdict == "fail" for check in checks):
        return checks
    say("asking for tokens and logits")
    ours = greedy_answers(case.exported, case.prompt)
    theirs = _transformers_class(case, ours)
    truth = _truth(case, ours)
    checks += _own(case, ours, truth)
    checks += _judged("transformers", theirs, ours, truth)
    return checks + _llama_cpp(case, path, ours, truth)


def prove_hf(
    source: Source, path: Path, wanted: HFType = "F32", say: Say = lambda text: None
) -> list[Check]:
    """Reads a Hugging Face directory back and compares it with the model that it was made of."""
    say("reading it back")
    try:
        case = _case(source, open_hf(path), wanted)
        checks = list(_read_back(case))
    except LockstepError as error:
        return [_refused(path, error)]
    if any(check.verdict == "fail" for check in checks):
        return checks
    say("asking for tokens and logits")
    ours = greedy_answers(case.exported, case.prompt)
    theirs = _directory(case, path, ours)
    truth = _truth(case, ours)
    checks += _own(case, ours, truth)
    if isinstance(theirs, Check):
        return [*checks, theirs]
    answers, ids = theirs
    expected = ids_of(case.tokenizer, case.texts, markup=True)
    checks.append(ids_check("tokenizer_transformers", "transformers", case.texts, expected, ids))
    return checks + _judged("transformers", answers, ours, truth)


def expect_room_for_proof(source: Source) -> None:
    """Refuses a model of which the proof would hold more than there is memory for.

    Raises: BudgetError.
    """
    needed = proof_bytes(source.model)
    free = available_bytes()
    if free is not None and needed > free:
        raise BudgetError(
            f"{source.where}: expected room for {needed >> 20} MiB to prove the export of "
            f"{source.model.n_parameters:,} parameters, this machine has {free >> 20} MiB left",
            hint="end other programs, or export on a machine with more memory",
        )


def proof_bytes(model: Model) -> int:
    """The memory that the proof of an export takes."""
    largest = max(prod(shape) for shape in model.shapes.values())
    return max(WEIGHT_BYTES * model.n_parameters, LEAF_BYTES * largest) + TORCH_BYTES


def _case(source: Source, exported: Source, wanted: ExportType) -> _Case:
    tokenizer = open_tokenizer(source)
    return _Case(
        source=source.in_hf_order(), exported=exported, wanted=wanted, tokenizer=tokenizer,
        texts=corpus_of(source, tokenizer), prompt=prompt_of(tokenizer),
    )  # fmt: skip


def prompt_of(tokenizer: ModelTokenizer) -> list[int]:
    """The ids of a prompt that every tokenizer can spell."""
    return begin_ids(tokenizer) + tokenizer.encode(prompt_text(tokenizer))


def prompt_text(tokenizer: ModelTokenizer) -> str:
    """The first tag of a run of ours, else some words."""
    tags = tokenizer.tags if isinstance(tokenizer, Tokenizer) else ()
    return tags[0] if tags else _PLAIN_PROMPT


def _refused(path: Path, error: LockstepError) -> Check:
    return Check.measured(
        id="read", name="files that cannot be read back", against="our reader", compared=1,
        unit="files", figure=1, relation="==", bound=0,
        reason=f"{path.name}: {error.message}".splitlines()[0],
    )  # fmt: skip


def _read_back(case: _Case) -> Iterator[Check]:
    exported = case.exported.in_hf_order()
    yield settings_check(case.source, exported)
    yield weights_check(case.source, exported, case.wanted)
    yield reader_check(case.source, case.exported, case.texts)


def greedy_answers(source: Source, prompt: Sequence[int], steps: int = STEPS) -> Answers:
    """Our engine: the greedy tokens after a prompt, and the logits of each choice."""
    room = min(source.model.config.context, len(prompt) + steps)
    opened = load(source, Capacity(context=room, rows=room, cache="f32"))
    session, stops = opened.session, open_tokenizer(source).stop_ids
    rows, tokens = [session.prefill(prompt)], []
    while True:
        tokens.append(int(np.argmax(rows[-1])))
        if tokens[-1] in stops or session.length == room or len(tokens) == steps:
            opened.built.program.close()
            return Answers(tokens=tokens, logits=np.array(rows))
        rows.append(session.decode(tokens[-1]))


def _truth(case: _Case, ours: Answers) -> Truth:
    """Of the parameters that the export should have, whatever it has."""
    model = case.source.model
    scheme: Any = case.exported.kind
    weights = model.family.weights(model.config)
    stored = {w.id: w.written_as(scheme, case.wanted) for w in weights}
    parameters = expected_parameters(case.source, case.wanted, scheme)
    target = Target.of(cpu_features())
    bits, origin_bits = (
        {id: target.bits(packed_type(source.parameters, id)) for id in stored}
        for source in (case.exported, case.source)
    )
    return truth_of(
        model, parameters, case.prompt, ours.tokens,
        stored=stored, bits=bits, origin_bits=origin_bits,
    )  # fmt: skip


def _own(case: _Case, ours: Answers, truth: Truth) -> list[Check]:
    checks = [logits_check("logits", "lockstep", ours, truth, ours.tokens, truth.own)]
    if case.wanted == "F32":
        run = greedy_answers(case.source, case.prompt)
        # Of two programs that may each be off; a tie is within twice the bound.
        bound = (truth.own + truth.origin) / 2
        checks.append(
            greedy_check(
                "greedy", "lockstep", ours.tokens, run.tokens, truth, bound, "the model itself"
            )
        )
    return checks


def _judged(who: str, theirs: Answers | Check, ours: Answers, truth: Truth) -> list[Check]:
    if isinstance(theirs, Check):
        return [theirs]
    return [
        logits_check(f"logits_{who}", who, theirs, truth, ours.tokens, truth.band),
        greedy_check(
            f"greedy_{who}", who, theirs.tokens, ours.tokens, truth, truth.own, "lockstep"
        ),
    ]


def _transformers_class(case: _Case, ours: Answers) -> Answers | Check:
    """The class of transformers with the settings and the weights that were read back."""
    try:
        oracle = require_oracle()
    except EnvironmentLacks as error:
        return _missing("transformers", error.message)
    model = case.exported.model
    parameters = OneByOne(model.shapes, case.exported.parameters.f32)
    try:
        asked = oracle.hf_model(model.family, model.config, parameters)
    except GateError as error:  # of a shape that it does not have: no fault of the file
        return _missing("transformers", error.message)
    ids = np.array([[*case.prompt, *ours.tokens[:-1]]])
    logits: Array = asked.logits(ids).detach().numpy()[0, len(case.prompt) - 1 :]
    return Answers(tokens=[int(t) for t in logits.argmax(axis=1)], logits=logits)


def _directory(
    case: _Case, path: Path, ours: Answers
) -> tuple[Answers, list[list[int] | None]] | Check:
    """Transformers' own reading of a directory."""
    try:
        require_oracle()
    except EnvironmentLacks as error:
        return _missing("transformers", error.message)
    asked: Any = import_module("lockstep.oracle.transformers_directory")
    text = [*case.prompt, *ours.tokens[:-1]]
    try:
        told = asked.ask_directory(path, case.prompt, text, len(ours.tokens), case.texts)
    except GateError as error:
        return _refused(path, error)
    logits = told.logits[len(case.prompt) - 1 :]
    return Answers(tokens=told.tokens, logits=logits), told.ids


def _llama_cpp(case: _Case, path: Path, ours: Answers, truth: Truth) -> list[Check]:
    vocab = case.source.model.config.vocab
    try:
        asked: Any = import_module("lockstep.oracle.llama_cpp")
        told = asked.ask_llama_cpp(path, case.prompt, len(ours.tokens), case.texts, vocab)
    except ImportError as error:
        return [_missing("llama.cpp", f"{error.name} is not installed")]
    except EnvironmentLacks as error:
        return [_missing("llama.cpp", error.message)]
    except GateError as error:
        return [_refused(path, error)]
    plain, markup = (ids_of(case.tokenizer, case.texts, markup=m) for m in (False, True))
    return [
        ids_check("tokenizer_llama_cpp", "llama.cpp", case.texts * 2, plain + markup,
                  told.plain_ids + told.markup_ids),
        probabilities_check("logits_llama_cpp", "llama.cpp", told.log_probabilities, told.tokens,
                            truth, ours.tokens),
        greedy_check("greedy_llama_cpp", "llama.cpp", told.tokens, ours.tokens, truth, truth.wide,
                     "lockstep"),
    ]  # fmt: skip


def _missing(who: str, reason: str) -> Check:
    return Check.missing(
        id=who.replace(".", "_"), name=f"ids, logits and greedy text of {who}", against="lockstep",
        unit="tokens", reason=reason,
    )  # fmt: skip
