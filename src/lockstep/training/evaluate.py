"""What a trained model draws for prompts that it never saw, judged tag by tag."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np

from lockstep.artifacts import RunDir, utc_now
from lockstep.artifacts.post_train_eval import PostTrainEval
from lockstep.artifacts.samples import Sample, Samples, SampleToken
from lockstep.artifacts.step_profile import StepProfile
from lockstep.artifacts.train_settings import TrainSettings
from lockstep.build import OptimizerSpec, model_of, training_program
from lockstep.data.grammar import Prompt, split_row
from lockstep.data.pack import IGNORED, Windows
from lockstep.data.rows import read_rows
from lockstep.data.score import Score, completion_of, drawings_of, score
from lockstep.engine.model import RunModel
from lockstep.engine.sampling import Sampler
from lockstep.engine.session import generate
from lockstep.engine.trainer import TrainingSession, sequences_per_call
from lockstep.errors import InputError
from lockstep.training.eval_record import HOLDOUT_FILE, EvalRequest, Found, eval_record
from lockstep.training.loop import microbatches
from lockstep.training.prepare import DATASET, TRAIN_FILE, windows_of

_NO_HOLDOUT = "the run's data set has no held-out rows"


def evaluate(
    run: RunDir, model: RunModel, settings: TrainSettings, request: EvalRequest
) -> tuple[PostTrainEval, Samples | None]:
    """Samples held-out prompts, judges them, and writes both records.

    Without held-out rows of the contract there is nothing to judge by; the record says why.
    """
    path = run.path / DATASET / HOLDOUT_FILE
    try:
        rows, known = _held_out(run)
        prompts = _prompts(rows, model, request)
    except InputError as error:
        skipped = eval_record(run, model, request, Found(reason=error.message))
        skipped.save(run.path)
        return skipped, None
    began, n_tokens = time.perf_counter(), 0
    samples: list[Sample] = []
    scores: list[Score] = []
    for prompt in prompts:
        sample, found = _draw(model, prompt, request, known)
        samples.append(sample)
        scores.append(found)
        n_tokens += len(sample.tokens) - sample.prompt_tokens
    _note_speed(run, n_tokens / (time.perf_counter() - began))
    loss = holdout_loss(model, settings, rows)
    record = eval_record(
        run, model, request, Found(samples=samples, scores=scores, holdout_loss=loss)
    )
    record.save(run.path)
    gallery = Samples(
        generated_at=utc_now(),
        prompt_source=str(path.relative_to(run.path)),
        sampling=dict(asdict(request.sampling)),
        weights_sha256=model.manifest.weights_sha256,
        tokenizer_sha256=model.tokenizer.sha256,
        rows=tuple(samples),
    )
    gallery.save(run.path)
    return record, gallery


def _held_out(run: RunDir) -> tuple[list[str], frozenset[str]]:
    """The held-out rows, and the drawings that were trained on.

    Raises: InputError if there are none, or one is no row of the contract.
    """
    directory = run.path / DATASET
    if not (directory / HOLDOUT_FILE).exists():
        raise InputError(_NO_HOLDOUT)
    rows = read_rows(directory / HOLDOUT_FILE)
    for i, row in enumerate(rows, start=1):
        split_row(row, where=f"{HOLDOUT_FILE}:{i}")
    return rows, drawings_of(read_rows(directory / TRAIN_FILE))


def _prompts(rows: Sequence[str], model: RunModel, request: EvalRequest) -> tuple[Prompt, ...]:
    """The first held-out prompts, each once.

    Raises: InputError if the context has no room behind one of them.
    """
    prompts = tuple(dict.fromkeys(split_row(row)[0] for row in rows))[: request.n_samples]
    longest = max(len(model.tokenizer.encode(prompt.text)) for prompt in prompts)
    if longest >= model.session.context:
        raise InputError(
            f"held-out prompts: expected fewer tokens than the context's {model.session.context}, "
            f"got {longest}"
        )
    return prompts


def _draw(
    model: RunModel, prompt: Prompt, request: EvalRequest, known: frozenset[str]
) -> tuple[Sample, Score]:
    """One completion and its score."""
    tokenizer, session = model.tokenizer, model.session
    ids = tokenizer.encode(prompt.text)
    session.reset()
    drawn = list(
        generate(
            session,
            ids,
            Sampler(request.sampling),
            max_tokens=request.max_tokens or session.context - len(ids),
            stop_ids=(tokenizer.eos_id,),
        )
    )
    stopped = bool(drawn) and drawn[-1] == tokenizer.eos_id
    text = tokenizer.decode(drawn)
    found = score(text, prompt, known)
    tokens = (SampleToken(id=id, text=tokenizer.decode([id])) for id in (*ids, *drawn))
    sample = Sample(
        prompt=prompt.text,
        prompt_tokens=len(ids),
        tokens=tuple(tokens),
        text=text,
        svg_valid=found.valid,
        svg=completion_of(text, prompt) if found.valid else None,
        error=found.reason,
        predicates=found.predicates,
        exact_copy=found.exact_copy,
        stopped=stopped,
    )
    return sample, found


def holdout_loss(model: RunModel, settings: TrainSettings, rows: Sequence[str]) -> float:
    """The mean loss per token over all rows, packed as training packs them."""
    config = model.config
    of = model_of(config.template, config.family_config)
    batch = sequences_per_call(settings.batch, settings.seq_len)
    built = training_program(
        of.family,
        of.config,
        batch=batch,
        tokens=settings.seq_len,
        optimizer=OptimizerSpec(kind=settings.optimizer, **asdict(config.adamw)),
        threads=settings.threads,
    )
    session = TrainingSession(built.program, batch=batch, tokens=settings.seq_len)
    parameters = {id: model.parameters.f32(id) for id in of.shapes}
    session.begin(parameters)
    windows = _whole_batches(windows_of(rows, model.tokenizer, settings), batch)
    return session.evaluate(microbatches(windows, batch))


def _whole_batches(windows: Windows, batch: int) -> Windows:
    """The windows, and empty ones behind them until the last batch is full."""
    missing = -len(windows) % batch
    inputs_WT = np.pad(windows.inputs_WT, ((0, missing), (0, 0)))
    targets_WT = np.pad(windows.targets_WT, ((0, missing), (0, 0)), constant_values=IGNORED)
    return Windows(inputs_WT, targets_WT)


def _note_speed(run: RunDir, tok_s: float) -> None:
    """Puts the speed of sampling into the profile of the run."""
    profile = StepProfile.find(run.path)
    if profile is not None:
        reasons = {k: v for k, v in profile.not_measured.items() if k != "decode_tok_s"}
        replace(profile, decode_tok_s=tok_s, not_measured=reasons).save(run.path)
