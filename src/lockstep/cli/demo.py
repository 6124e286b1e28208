"""`lockstep demo`: from generated data to drawn SVG, proved on the way, with a closing table."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from lockstep import __version__
from lockstep.artifacts import Check, RunDir, all_pass, utc_now
from lockstep.artifacts.demo import Demo, DemoPart
from lockstep.artifacts.post_train_eval import PostTrainEval
from lockstep.artifacts.train_config import AdamWSettings
from lockstep.cli.parity import say
from lockstep.cli.table import verdict_table
from lockstep.cli.train import ProgressLine
from lockstep.cli.verb import Outcome, Verb
from lockstep.data.corpus import build_corpus
from lockstep.errors import EnvironmentLacks, UsageError
from lockstep.proof.canary import run_canaries
from lockstep.proof.compare_run import compare_run
from lockstep.proof.go import evaluate_go
from lockstep.proof.regimen import run_regimen
from lockstep.proof.twin import require_oracle
from lockstep.report import write_report
from lockstep.report.gates import comparison_check
from lockstep.training.create import ModelRequest, create_run
from lockstep.training.eval_record import EvalRequest
from lockstep.training.pipeline import PipelineRequest, run_pipeline
from lockstep.training.prepare import DATASET, TRAIN_FILE
from lockstep.training.train import TrainRequest

MODEL = ModelRequest(
    template="qwen3", layers=4, embed_dim=96, hidden_dim=192, num_heads=8, num_kv_heads=4,
    vocab_size=512, context_len=96,
)  # fmt: skip
ADAMW = AdamWSettings(beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.01)
SETTINGS: dict[str, Any] = {"epochs": 4, "batch": 8, "lr": 3e-3, "save_every": 500}
EVALUATION = EvalRequest(n_samples=64, min_valid_rate=0.95, min_faithfulness=0.80)
SEED = 42
N_PARTS = 7


@dataclass
class Story:
    """What the demo has done so far: its parts with their times, and all checks."""

    parts: list[DemoPart] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Says what begins, and notes how long it took."""
        say(f"\n[{len(self.parts) + 1}/{N_PARTS}] {name}")
        began = time.perf_counter()
        yield
        self.parts.append(DemoPart(name=name, seconds=time.perf_counter() - began))

    def has_oracle(self, id: str, name: str) -> bool:
        """Whether PyTorch is there; without it this part is missing, not passed."""
        try:
            require_oracle()
        except EnvironmentLacks as error:
            say(f"    {error}")
            lack = Check.missing(
                id=id, name=name, against="PyTorch", unit="steps", reason=error.message
            )
            self.adds((lack,))
            return False
        return True

    def adds(self, checks: tuple[Check, ...]) -> None:
        """Takes checks over; one that is known already, by its id, is replaced."""
        known = {check.id: check for check in (*self.checks, *checks)}
        self.checks = list(known.values())


def _draw_and_train(run: RunDir, story: Story) -> None:
    with story.part("data: drawings for every tag, each checked against its tags"):
        corpus = build_corpus(seed=SEED)
        say(f"    {len(corpus.train)} rows to train on, {len(corpus.prompts('holdout'))} prompts "
            "that are held out")  # fmt: skip
    with story.part("train: generated C, then promote and draw held-out prompts"):
        create_run(run, MODEL, init="xavier_uniform", seed=SEED, adamw=ADAMW, force=True)
        with TemporaryDirectory(prefix="lockstep.") as data:
            corpus.save(Path(data))
            training = TrainRequest(settings=SETTINGS, data=Path(data))
            request = PipelineRequest(training=training, evaluation=EVALUATION)
            done = run_pipeline(run, request, ProgressLine())
        if done.report is None:
            raise KeyboardInterrupt  # the training took the signal, and saved what there was
        story.adds((*done.report.checks, *undrawn(done.evaluation)))


def undrawn(evaluation: PostTrainEval | None) -> tuple[Check, ...]:
    """What is missing if no drawing was judged: a demo without its drawings does not pass."""
    if evaluation is not None and evaluation.status == "ok":
        return ()
    reason = evaluation.reason if evaluation else "nothing was drawn"
    lack = Check.missing(
        id="valid_svg_rate", name="valid drawings", against="the safe SVG parser", unit="samples",
        reason=reason,
    )  # fmt: skip
    return (lack,)


def _prove(run: RunDir, story: Story) -> None:
    with story.part("canary: two trainings beside PyTorch, step by step"):
        if story.has_oracle("canary", "two trainings"):
            for result in run_canaries(run, run.path / DATASET / TRAIN_FILE):
                say(f"    {result.line()}")
                own = (c for c in result.report.checks if c.id.startswith("canary"))
                story.adds(tuple(own))
    with story.part("regimen: free-running beside PyTorch, replays to the bit"):
        if story.has_oracle("regimen", "stages D1, E1 and F1"):
            for stage in run_regimen(run, force=True).stages:
                say(f"    {stage.id} {stage.status}  {stage.name}")
                story.adds(stage.checks)
    with story.part("compare: every node against float64, alone and together"):
        pairs = compare_run(run).comparisons
        story.adds(tuple(comparison_check(i, pair) for i, pair in enumerate(pairs)))
    with story.part("go: may the runbook proceed?"):
        go = evaluate_go(run)
        go.save(run.path)
        story.adds(go.evidence)


@click.command(cls=Verb)
@click.option("--run", "name", default="demo", show_default=True, help="The run's name or path.")
@click.option("--force", is_flag=True, help="Replace a run that is there.")
def command(name: str, force: bool) -> Outcome:
    """Show the whole way in about two minutes. Exit code 1 if a check fails."""
    run = RunDir.resolve(name)
    if run.path.exists() and not force:
        raise UsageError(
            f"{run.path}: expected a new directory, got one that is there",
            hint="give --force to replace it, or another --run",
        )
    began, story = time.perf_counter(), Story()
    _draw_and_train(run, story)
    _prove(run, story)
    with story.part("report: one page, from the evidence alone"):
        page = write_report(run.path)
    demo = _record(run, story, time.perf_counter() - began)
    demo.save(run.path)
    write_report(run.path)
    lines = ["", verdict_table(story.checks), "", *_quality(run), f"report: {page}"]
    if not demo.passed:
        lines.append("the demo FAILED: see the rows above that did not pass")
    return Outcome(demo.document(), "\n".join(lines), int(not demo.passed))


def _record(run: RunDir, story: Story, seconds: float) -> Demo:
    return Demo(
        generated_at=utc_now(),
        run_dir=str(run.path),
        lockstep_version=__version__,
        machine={"machine": platform.machine(), "cpus": len(os.sched_getaffinity(0))},
        seconds=seconds,
        parts=tuple(story.parts),
        passed=all_pass(story.checks),
        checks=tuple(story.checks),
    )


def _quality(run: RunDir) -> list[str]:
    """What is told and not judged: how often a drawing was copied, and where to go on."""
    found = PostTrainEval.load(run.path)
    copies = "not measured" if found.exact_copy_rate is None else f"{found.exact_copy_rate:.1%}"
    prompt = "[circle][palette:cool][style:minimal][layout:center]"
    return [
        f"drawings that are exact copies of a training row: {copies} of {found.sample_count}",
        f"draw one yourself: {_this_command()} run {run.name} -p '{prompt}'",
    ]


def _this_command() -> str:
    """How this command was called, so that what is printed can be pasted."""
    path = Path(sys.argv[0])
    return os.path.relpath(path) if path.name == "lockstep" else "lockstep"
