"""Stage D1: this run's own model, free-running against PyTorch, with every gradient of step 1."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite

import numpy as np

from lockstep.artifacts import Check, RunDir
from lockstep.artifacts.runtime_stitch import RuntimeStitch
from lockstep.artifacts.step_grads import StepGrads, TensorDiff
from lockstep.artifacts.train_config import TrainConfig
from lockstep.artifacts.training_parity import ParityRow
from lockstep.build import inference_program
from lockstep.engine.packed import place_arrays
from lockstep.engine.session import InferenceSession, Piece
from lockstep.errors import UsageError
from lockstep.ir import Array, InferenceShape
from lockstep.proof.differences import Difference, curve_difference, tensor_difference
from lockstep.proof.replay import Replayed, accumulate, replay, start_session
from lockstep.proof.stages import evidence
from lockstep.proof.tolerances import D1_FIRST_LOSS, D1_LOGITS, D1_LOSS_MAX, D1_PARAM_MAX
from lockstep.proof.twin import Recipe, Twin, require_oracle, train_twin
from lockstep.training.create import differences, refuse_differences

_TORCH = "transformers trained by PyTorch"


def runtime_stitch(run: RunDir, n_steps: int) -> RuntimeStitch:
    """D1: first-step logits, loss and gradients, then some steps without any synchronisation.

    Raises: EnvironmentLacks without PyTorch.
    """
    recipe = Recipe.of(run, n_steps)
    ours, twin = replay(recipe, threads=recipe.settings.threads), train_twin(run, recipe)
    curve = [(row.step, row.loss) for row in twin.reference.loss_curve]
    loss = curve_difference(ours.losses, curve, len(recipe.steps))
    parameters = tensor_difference(ours.parameters, twin.parameters)
    logits = logits_difference(recipe)
    gradients = first_step_gradients(recipe)
    gradients.save(run.step_grads)
    checks = (
        _refuses_other_dimensions(run),
        *_parity_checks(ours, twin, loss, parameters, logits),
        _gradient_check(gradients),
    )
    rows = _rows(ours, twin, parameters, logits, gradients)
    absent = "the reference trains freely; its parameters are compared after the last step"
    return RuntimeStitch(
        evidence=evidence(run, "D1", {"steps": len(recipe.steps)}, checks),
        steps=rows,
        not_measured={
            "steps.max_param_diff": absent,
            "steps.logits_max_abs_diff": "compared at the start weights, step 1",
            "steps.max_grad_diff": "compared at the start weights, step 1",
            "steps.loss_diff": loss.problem or "none",
        },
    )


def logits_difference(recipe: Recipe) -> Difference:
    """Our compiled inference against transformers, on the first window at the start weights."""
    model = recipe.model
    window = recipe.steps[0][0].tokens[:1]
    length = window.shape[1]
    shape = InferenceShape(context=length, rows=length, outs=length)
    built = inference_program(model.family, model.config, shape)
    place_arrays(built.program, recipe.start)
    session = InferenceSession(built.program, shape)
    (ours,) = session.read([Piece(0, [int(id) for id in window[0]], "all")])
    theirs = _oracle_at_start(recipe).logits(window).detach().numpy()[0]
    return tensor_difference({"logits": ours}, {"logits": theirs})


def first_step_gradients(recipe: Recipe) -> StepGrads:
    """Every gradient of the first microbatch, ours against transformers'."""
    microbatch = recipe.steps[0][0]
    session = start_session(recipe, threads=recipe.settings.threads)
    accumulate(session.program, [microbatch], first=0, n_targets=microbatch.n_targets)
    answer = _oracle_at_start(recipe).losses_and_gradients(microbatch.tokens, microbatch.targets)
    ours = {id.removesuffix("@grad"): array for id, array in session.gradients().items()}
    rows = tuple(
        tensor_row(id, ours.get(id), answer.gradients.get(id))
        for id in sorted(ours.keys() | answer.gradients.keys())
    )
    whole = tensor_difference(ours, answer.gradients)
    worst = max(rows, key=lambda row: np.inf if row.reason else row.max_abs_diff or 0.0)
    bad = {"per_tensor." + key: whole.problem for key in TensorDiff.__annotations__}
    return StepGrads(
        step=1,
        global_max_abs_diff=whole.maximum if isfinite(whole.maximum) else None,
        global_mean_abs_diff=whole.mean if isfinite(whole.mean) else None,
        global_numel=whole.n,
        worst_tensor=worst.name,
        per_tensor=rows,
        not_measured=(
            {"global_max_abs_diff": whole.problem, "global_mean_abs_diff": whole.problem, **bad}
            if whole.problem
            else {}
        ),
    )


def tensor_row(id: str, ours: Array | None, theirs: Array | None) -> TensorDiff:
    """One tensor on both sides; nulls and a reason where one is missing or not finite."""
    one = ours if ours is not None else theirs
    assert one is not None
    common = {"name": id, "shape": tuple(one.shape), "numel": int(one.size)}
    difference = tensor_difference(
        {} if ours is None else {id: ours}, {} if theirs is None else {id: theirs}
    )
    if ours is None or theirs is None or difference.problem:
        figures = ("ck_max_abs", "torch_max_abs", "max_abs_diff", "mean_abs_diff", "l2_diff")
        reason = difference.problem or "missing"
        return TensorDiff(**common, **dict.fromkeys(figures), reason=reason)  # type: ignore[arg-type]
    gap = ours.astype(np.float64) - theirs.astype(np.float64)
    return TensorDiff(
        name=id,
        shape=tuple(one.shape),
        numel=int(one.size),
        ck_max_abs=float(np.abs(ours).max()),
        torch_max_abs=float(np.abs(theirs).max()),
        max_abs_diff=difference.maximum,
        mean_abs_diff=difference.mean,
        l2_diff=float(np.sqrt((gap**2).sum())),
    )


def gradient_error(row: TensorDiff) -> float:
    """The difference over the scale of the tensor; NaN where it could not be compared."""
    if row.max_abs_diff is None or row.torch_max_abs is None:
        return float("nan")
    # A gradient below 1e-6 is its neighbours' rounding on both sides, no scale to divide by.
    return row.max_abs_diff / max(row.torch_max_abs, 1e-6)


def _oracle_at_start(recipe: Recipe):  # type: ignore[no-untyped-def]  # a type of another room
    return require_oracle().hf_model(recipe.model.family, recipe.model.config, recipe.start)


def _refuses_other_dimensions(run: RunDir) -> Check:
    """Asks for a width that the run does not have; it must be refused, not ignored."""
    config = TrainConfig.load(run.path)
    asked: Mapping[str, int] = {"embed_dim": config.embed_dim + 2 * config.num_heads}
    try:
        refuse_differences(run, differences(config, asked))
        refused = 0.0
    except UsageError:
        refused = 1.0
    return Check.measured(
        id="D1_dims", name="D1: conflicting dimensions refused", against="a planted request",
        compared=1, unit="requests", figure=refused, relation="==", bound=1.0,
    )  # fmt: skip


def _parity_checks(
    ours: Replayed, twin: Twin, loss: Difference, parameters: Difference, logits: Difference
) -> tuple[Check, ...]:
    first = abs(ours.losses[0][1] - twin.reference.loss_curve[0].loss)
    rows = (
        ("D1_logits", "D1: largest logit difference", logits, logits.maximum, D1_LOGITS, "logits"),
        ("D1_first_loss", "D1: loss difference of step 1", loss, first, D1_FIRST_LOSS, "steps"),
        ("D1_loss_max", "D1: largest loss difference", loss, loss.maximum, D1_LOSS_MAX, "steps"),
        ("D1_param_max", "D1: largest parameter difference at the end", parameters,
         parameters.maximum, D1_PARAM_MAX, "parameters"),
    )  # fmt: skip
    return tuple(
        Check.measured(
            id=id, name=name, against=_TORCH, compared=difference.n, unit=unit, figure=figure,
            relation="<=", bound=bound.value, reason=difference.problem,
        )
        for id, name, difference, figure, bound, unit in rows
    )  # fmt: skip


GRADIENT_BOUND = 2e-4  # relative; as the runbook's for logits: both are one pass of float32


def _gradient_check(gradients: StepGrads) -> Check:
    errors = [gradient_error(row) for row in gradients.per_tensor]
    worst = max(errors, key=lambda e: e if isfinite(e) else np.inf, default=float("nan"))
    return Check.measured(
        id="D1_gradients", name="D1: largest relative gradient difference", against=_TORCH,
        compared=gradients.global_numel, unit="gradient elements", figure=worst, relation="<=",
        bound=GRADIENT_BOUND, reason=gradients.not_measured.get("global_max_abs_diff", ""),
    )  # fmt: skip


def _rows(
    ours: Replayed, twin: Twin, parameters: Difference, logits: Difference, grads: StepGrads
) -> tuple[ParityRow, ...]:
    """One row per step; parameters belong to the last one, logits and gradients to the first."""
    theirs = {row.step: row.loss for row in twin.reference.loss_curve}
    last = len(ours.losses)
    bad = [r.name for r in grads.per_tensor if not gradient_error(r) <= GRADIENT_BOUND]
    rows = []
    for step, loss in ours.losses:
        gap = abs(loss - theirs[step]) if step in theirs else float("nan")
        rows.append(
            ParityRow(
                step=step,
                loss_diff=gap if isfinite(gap) else None,
                max_param_diff=parameters.maximum if step == last and parameters.n else None,
                checked=True,
                oracle_available=True,
                first_bad_tensor=bad[0] if bad and step == 1 else None,
                slots_compared=len(grads.per_tensor) if step == 1 else 0,
                slots_matched=len(grads.per_tensor) - len(bad) if step == 1 else 0,
                logits_max_abs_diff=logits.maximum if step == 1 and logits.n else None,
                max_grad_diff=grads.global_max_abs_diff if step == 1 else None,
            )
        )
    return tuple(rows)
