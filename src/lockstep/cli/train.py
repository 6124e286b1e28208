"""`lockstep train`: data set to trained, promoted and evaluated weights."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, get_args

import click

from lockstep.artifacts import RunDir
from lockstep.artifacts.metrics import MetricRow
from lockstep.cli.options import MODEL_DIMS, Finite, options, run_option, said
from lockstep.cli.verb import Outcome, Verb
from lockstep.data.pack import PACKINGS
from lockstep.engine.sampling import Sampling
from lockstep.engine.schedule import Decay
from lockstep.tokenizers import KINDS, PRE_TOKENIZERS
from lockstep.training.eval_record import EvalRequest
from lockstep.training.loop import Budget
from lockstep.training.pipeline import PipelineOutcome, PipelineRequest, run_pipeline
from lockstep.training.settings import DEFAULTS
from lockstep.training.train import TrainRequest

INTERRUPTED = 128  # plus the number of the signal, as a shell says it
_SECONDS_BETWEEN_LINES = 2.0


def _default(name: str) -> str:
    return f"  [default: {DEFAULTS[name]}]"


_SETTINGS: tuple[tuple[Any, ...], ...] = (
    ("--tokenizer", "tokenizer", "Kind of tokenizer." + _default("tokenizer"),
     {"type": click.Choice(KINDS)}),
    ("--bpe-vocab-size", "bpe_vocab_size", "Its number of ids.  [default: the model's]",
     {"type": int}),
    ("--pre-tokenizer", "pre_tokenizer",
     "How text is split before merges." + _default("pre_tokenizer"),
     {"type": click.Choice(PRE_TOKENIZERS)}),
    ("--pack-mode", "packing", "Whole rows (sample) or one stream." + _default("packing"),
     {"type": click.Choice(PACKINGS)}),
    ("--prompt-loss/--no-prompt-loss", "prompt_loss",
     "Predict the tags in front of rows too." + _default("prompt_loss"), {"default": None}),
    ("--epochs", "epochs", "How often the data is seen." + _default("epochs"), {"type": int}),
    ("--seq-len", "seq_len", "Tokens in one sequence.  [default: the model's context]",
     {"type": int}),
    ("--total-tokens", "total_tokens",
     "Tokens of an epoch; the data is cut or repeated.  [default: the data once]", {"type": int}),
    ("--batch-size", "batch", "Sequences in one microbatch." + _default("batch"), {"type": int}),
    ("--grad-accum", "grad_accum", "Microbatches in one step." + _default("grad_accum"),
     {"type": int}),
    ("--optimizer", "optimizer", "The optimizer." + _default("optimizer"),
     {"type": click.Choice(("adamw", "sgd"))}),
    ("--lr", "lr", "Highest learning rate." + _default("lr"), {"type": float}),
    ("--schedule", "schedule", "How it falls." + _default("schedule"),
     {"type": click.Choice(get_args(Decay))}),
    ("--warmup-steps", "warmup_steps", "Steps in which it climbs.  [default: 5 % of all]",
     {"type": int}),
    ("--final-lr-share", "final_lr_share",
     "Its last value as a share of the highest." + _default("final_lr_share"), {"type": float}),
    ("--max-grad-norm", "max_grad_norm",
     "Clip gradients to this norm; 0 does not." + _default("max_grad_norm"), {"type": float}),
    ("--seed", "seed", "Seed of the data order.  [default: that of init]", {"type": int}),
    ("--save-every", "save_every",
     "Steps between checkpoints; 0 saves at the end." + _default("save_every"), {"type": int}),
    ("--keep-last", "keep_last", "Checkpoints to keep; 0 is all." + _default("keep_last"),
     {"type": int}),
    ("--require-ascii-data/--no-require-ascii-data", "require_ascii",
     "Refuse rows that are not ASCII.  [default: for ascii_bpe]", {"default": None}),
    ("--require-svg-rows/--no-require-svg-rows", "require_svg_rows",
     "Refuse rows that are not [tags]<svg ...> or <svg ...>." + _default("require_svg_rows"),
     {"default": None}),
    ("--threads", "threads", "Threads; the result does not depend on it.  [default: all cores]",
     {"type": int}),
)  # fmt: skip
_DATA_HELP = "Rows: a file, or a directory with train.txt.  [default: the run's own]"
_NAMES = tuple(group[1] for group in _SETTINGS)
_DIMS = tuple((flag, name, f"{text} Must be the run's.", {"type": int})
              for flag, name, text in MODEL_DIMS)  # fmt: skip


@click.command(cls=Verb)
@run_option
@click.option("--data", type=click.Path(path_type=Path), help=_DATA_HELP)
@options(*_SETTINGS)
@click.option("--template", help="The architecture. Must be the run's.")
@options(*_DIMS)
@click.option("--resume", is_flag=True, help="Go on from the newest valid checkpoint.")
@click.option("--force", is_flag=True, help="Remove the training that is there, start again.")
@click.option("--promote/--no-promote", "promoted", default=True, show_default=True,
              help="Make the trained weights those of the run.")  # fmt: skip
@click.option("--post-train-eval/--no-post-train-eval", "evaluated", default=True,
              show_default=True, help="Draw held-out prompts and judge the drawings.")  # fmt: skip
@click.option("--eval-samples", type=click.IntRange(1), default=64, show_default=True,
              help="Held-out prompts to draw.")  # fmt: skip
@click.option("--eval-temperature", type=Finite(0, 100), default=0.0, show_default=True,
              help="Temperature of these drawings.")  # fmt: skip
@click.option("--min-valid-svg-rate", type=Finite(0, 1), default=0.70, show_default=True,
              help="Share of valid drawings below which the pipeline fails.")  # fmt: skip
@click.option("--min-faithfulness", type=Finite(0, 1), default=0.80, show_default=True,
              help="Share of true tags below which the pipeline fails.")  # fmt: skip
def command(
    run: RunDir, data: Path | None, resume: bool, force: bool, promoted: bool, evaluated: bool,
    eval_samples: int,
    eval_temperature: float, min_valid_svg_rate: float, min_faithfulness: float, **rest: Any,
) -> Outcome:  # fmt: skip
    """Train a run; then promote and evaluate it. Exit code 1 if a gate of the pipeline fails."""
    settings = said({name: rest.pop(name) for name in _NAMES})
    training = TrainRequest(
        settings=settings,
        dims=said(rest),
        data=data,
        resume=resume,
        force=force,
    )
    evaluation = EvalRequest(
        n_samples=eval_samples,
        sampling=Sampling(temperature=eval_temperature),
        min_valid_rate=min_valid_svg_rate,
        min_faithfulness=min_faithfulness,
    )
    request = PipelineRequest(
        training=training, evaluation=evaluation if evaluated else None, promoted=promoted
    )
    return _outcome(run, run_pipeline(run, request, ProgressLine()))


class ProgressLine:
    """Says on stderr how far a training is, every two seconds and at its end."""

    def __init__(self) -> None:
        self._said = 0.0
        self._began: tuple[float, int] | None = None

    def __call__(self, row: MetricRow, budget: Budget) -> None:
        now = time.monotonic()
        began, first = self._began = self._began or (now, row.step)
        last = row.step == budget.total_steps
        if now - self._said < _SECONDS_BETWEEN_LINES and not last:
            return
        self._said = now
        done = row.step - first
        left = (now - began) / done * (budget.total_steps - row.step) if done else None
        eta = "" if left is None else f"  {left:5.0f} s left"
        line = (
            f"step {row.step}/{budget.total_steps}  loss {row.loss:.4f}  "
            f"norm {row.grad_norm:.3f}  {row.tok_s:,.0f} tok/s{eta}"
        )
        print(line, file=sys.stderr, flush=True)


def _outcome(run: RunDir, done: PipelineOutcome) -> Outcome:
    trained = done.training
    document: dict[str, Any] = {
        "run_dir": str(run.path),
        "run_id": trained.run_id,
        "status": "interrupted" if trained.interrupted else "completed",
        "skipped_checkpoints": [{"path": str(s.path), "why": s.why} for s in trained.skipped],
        "report": done.report.document() if done.report else None,
        "evaluation": done.evaluation.document() if done.evaluation else None,
    }
    lines = [f"skipped checkpoint {s.path.name}: {s.why}" for s in trained.skipped]
    if trained.interrupted:
        lines.append(f"interrupted and saved; go on with `lockstep train {run.name} --resume`")
        return Outcome(document, "\n".join(lines), INTERRUPTED + trained.interrupted)
    if trained.report is not None:
        curve = f"{trained.report.first_ck_loss:.4f} to {trained.report.final_ck_loss:.4f}"
        tok_s = trained.report.train_tok_s
        speed = "all done before" if tok_s is None else f"{tok_s:,.0f} tok/s"
        lines.append(f"{trained.report.steps} steps, loss {curve}, {speed}")
    if done.report is not None:
        lines += [f"{c.verdict:4}  {c.name}: {c.figure:g} {c.relation} {c.bound:g} "
                  f"over {c.compared} {c.unit}" for c in done.report.checks
                  if c.figure is not None and c.bound is not None]  # fmt: skip
        if done.evaluation is not None and done.evaluation.status == "skipped":
            lines.append(f"no drawings were judged: {done.evaluation.reason}")
        lines.append(f"pipeline: {done.report.status}  ({run.path})")
    failed = done.report is not None and done.report.status == "fail"
    return Outcome(document, "\n".join(lines), int(failed))
