"""Runs: what a training leaves behind, what it refuses, and that no number depends on threads."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from training_run import ALONE, INIT, STEPS, TRAIN, error_of, new_run, result, small_corpus, train

from lockstep.artifacts import RunDir, read_lines
from lockstep.artifacts.checkpoint_policy import CheckpointPolicy
from lockstep.artifacts.dataset_profile import DatasetProfile
from lockstep.artifacts.dataset_qc import DatasetQc
from lockstep.artifacts.grad_norms import GradNorms
from lockstep.artifacts.graph_file import GraphFile
from lockstep.artifacts.loss_curve import LossCurve
from lockstep.artifacts.metrics import MetricRow
from lockstep.artifacts.pipeline_report import PipelineReport
from lockstep.artifacts.post_train_eval import PostTrainEval
from lockstep.artifacts.run_ledger import LedgerRow, current
from lockstep.artifacts.samples import Samples
from lockstep.artifacts.step_profile import StepProfile
from lockstep.artifacts.tokenizer_roundtrip import TokenizerRoundtrip
from lockstep.artifacts.train_config import CONFIG_FILE, TrainConfig
from lockstep.artifacts.train_report import E2E_FILE, TrainReport
from lockstep.artifacts.train_settings import TrainSettings
from lockstep.artifacts.training_pipeline import TrainingPipeline
from lockstep.artifacts.training_plan import TrainingPlan
from lockstep.artifacts.weights_manifest import WeightsManifest
from lockstep.build import OptimizerSpec, model_of, training_program
from lockstep.cli.main import main
from lockstep.data.pack import Batches, Cursor, Windows
from lockstep.engine.bump import read_bump
from lockstep.engine.trainer import TrainingSession
from lockstep.errors import GateError
from lockstep.training.lock import sole_training
from lockstep.training.loop import Budget, Loop, Position, StopRequest
from lockstep.training.train import schedule_of

pytestmark = pytest.mark.usefixtures("quick_builds")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("data")
    small_corpus().save(directory)
    return directory


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, data: Path) -> RunDir:
    """A run that was trained, promoted and evaluated; tests must not change it."""
    run = new_run(tmp_path_factory.mktemp("runs") / "whole")
    code = train(run, "--data", str(data), *TRAIN, "--eval-samples=3")
    assert code == 1, "a model of this size cannot draw yet, and the pipeline has to say so"
    return run


@pytest.fixture
def copy(trained: RunDir, tmp_path: Path) -> RunDir:
    """A copy of the trained run, to be changed."""
    shutil.copytree(trained.path, tmp_path / "copy", symlinks=True)
    return RunDir(tmp_path / "copy")


def test_every_file_of_the_run_is_there_and_holds_together(trained: RunDir) -> None:
    path = trained.path
    assert TrainConfig.load(path) == TrainConfig.load(path, CONFIG_FILE)
    report = TrainReport.load(path, E2E_FILE)
    work = trained.work(report.run_id)
    assert TrainReport.load(work) == report
    assert trained.latest_work() == work
    assert [row.step for row in report.loss_curve] == list(range(1, STEPS + 1))
    assert report.final_ck_loss < 0.9 * report.first_ck_loss
    assert report.loss_curve[0].loss_pt is None
    assert report.pass_parity is None
    assert LossCurve.load(path).steps == report.loss_curve
    assert GradNorms.load(path).steps == report.grad_norm_series.steps
    qc, trip = DatasetQc.load(path), TokenizerRoundtrip.load(path)
    assert (qc.status, trip.status, trip.exact_match) == ("pass", "pass", True)
    assert trip.input_lines == qc.non_empty_lines == report.data_provenance[0].rows
    assert DatasetProfile.load(path).sha256 == qc.sha256
    policy = CheckpointPolicy.load(path)
    assert [f.step for f in policy.files] == [STEPS - 5, STEPS]
    assert all((path / f.bump).exists() and (path / f.manifest).exists() for f in policy.files)
    assert StepProfile.load(path).decode_tok_s
    assert TrainingPipeline.load(path).stage_loss_history.entries[0].steps == STEPS
    assert TrainingPlan.load(path).stages[0].runs[0].run_id == report.run_id
    assert any(node.op == "adamw" for node in GraphFile.load(path).nodes)
    (row,) = current(read_lines(trained.ledger, LedgerRow))
    assert (row.status, row.steps, row.checkpoint_step) == ("completed", STEPS, STEPS)


def test_telemetry_has_one_true_line_per_step(trained: RunDir) -> None:
    rows = read_lines(trained.metrics, MetricRow)
    settings = TrainSettings.load(trained.path)
    schedule = schedule_of(settings, Budget.of(settings, 10**6))
    assert settings.warmup_steps == 3
    assert [row.step for row in rows] == list(range(1, STEPS + 1))
    assert [row.lr for row in rows] == [schedule.rate(step) for step in range(1, STEPS + 1)]
    assert [row.epoch for row in rows] == [(s - 1) // 20 + 1 for s in range(1, STEPS + 1)]
    seen = np.diff([0, *(row.tokens_seen for row in rows)])
    assert (seen > 0).all()
    assert (seen <= 2 * 2 * 32).all()
    for row, tokens in zip(rows, seen, strict=True):
        assert row.tok_s == pytest.approx(tokens / row.wall_ms * 1e3)


def test_the_evaluation_and_the_pipeline_say_what_was_found(trained: RunDir) -> None:
    found, samples = PostTrainEval.load(trained.path), Samples.load(trained.path)
    assert found.status == "ok"
    assert found.sample_count == len(samples.rows) == 3
    assert found.valid_count == samples.n_valid
    assert found.holdout_loss is not None
    assert math.log(200) > found.holdout_loss > 1.0
    manifest = WeightsManifest.load(trained.path)
    assert found.weights_sha256 == samples.weights_sha256 == manifest.weights_sha256
    holdout = (trained.path / "dataset" / "holdout.txt").read_text()
    assert all(holdout.count(f"{row.prompt}<svg") for row in samples.rows)
    report = PipelineReport.load(trained.path)
    failed = [check.id for check in report.checks if check.verdict == "fail"]
    assert report.status == "fail"
    assert failed == ["valid_svg_rate", "tag_faithfulness"]
    assert report.post_train_eval.status == "fail"
    assert report.ck_loss is not None
    assert report.ck_loss.steps == STEPS


def test_promoted_weights_are_those_of_the_last_checkpoint(trained: RunDir) -> None:
    config = TrainConfig.load(trained.path)
    shapes = model_of(config.template, config.family_config).shapes
    manifest, weights = read_bump(trained.path, shapes)
    _, last = read_bump(trained.checkpoints / "current", shapes)
    assert manifest.step == STEPS
    assert all(weights[id].tobytes() == last[id].tobytes() for id in shapes)


def test_threads_change_no_bit(trained: RunDir, data: Path, tmp_path: Path) -> None:
    run = new_run(tmp_path / "other")
    assert train(run, "--data", str(data), *TRAIN[:-1], "--threads=3", *ALONE) == 0
    assert result(run) == result(trained)


def test_text_comes_from_the_promoted_weights(
    trained: RunDir, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = ["run", str(trained.path), "-p", "[circle]", "-n", "12", "--temperature=0.9"]
    assert main([*flags, "--seed=1"]) == 0
    text = capfd.readouterr().out
    assert main([*flags, "--seed=1", "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert document["text"] + "\n" == text
    assert document["checkpoint_step"] == STEPS
    assert 1 <= len(document["tokens"]) <= 12
    assert main([*flags, "--seed=2"]) == 0
    assert capfd.readouterr().out != text


def test_promoting_an_older_checkpoint_and_back(
    copy: RunDir, capfd: pytest.CaptureFixture[str]
) -> None:
    before = WeightsManifest.load(copy.path).weights_sha256
    leftover = copy.path / ".weights.bump.1.link"  # of a kill between making a link and renaming it
    leftover.symlink_to("nowhere")
    older = ["promote", str(copy.path), f"--step={STEPS - 5}"]
    assert main([*older, "--dry-run"]) == 0
    assert WeightsManifest.load(copy.path).weights_sha256 == before
    assert main(older) == 0
    assert WeightsManifest.load(copy.path).step == STEPS - 5
    assert not leftover.is_symlink()
    assert main(["promote", str(copy.path), "--json"]) == 0
    said = capfd.readouterr().out
    document = json.loads(said[said.index("{\n") :])
    assert document["selected"]["checkpoint_step"] == STEPS
    assert WeightsManifest.load(copy.path).weights_sha256 == before
    assert main(["promote", str(copy.path), "--step=3"]) == 2


def test_what_differs_from_the_run_is_named(
    trained: RunDir, capfd: pytest.CaptureFixture[str]
) -> None:
    def message(*flags: str) -> str:
        assert train(trained, "--json", *flags) == 2
        return error_of(capfd.readouterr().out)

    dims = message("--resume", "--layers=3", "--embed-dim=64", "--num-heads=4", "--template=llama")
    assert "--layers is 2, got 3" in dims
    assert "--embed-dim is 32, got 64" in dims
    assert "--template is qwen3, got llama" in dims
    assert "num-heads" not in dims
    assert "--lr is 0.003, got 1.0" in message("--resume", "--lr=1")
    assert "got one with checkpoints" in message("--lr=1")
    assert "--tokenizer is ascii_bpe, got bpe" in message("--resume", "--tokenizer=bpe")


def test_a_directory_in_use_is_refused_and_replaced_by_force(copy: RunDir) -> None:
    assert main(["init", str(copy.path), *INIT]) == 2
    assert copy.metrics.exists()
    assert main(["init", str(copy.path), *INIT, "--force"]) == 0
    assert not copy.metrics.exists()
    (copy.path / TrainConfig.file).unlink()
    assert main(["init", str(copy.path), *INIT, "--force"]) == 2, "no run, so not ours to remove"


@pytest.mark.parametrize(
    ("content", "code", "said"),
    [
        (b"", 4, "non_empty_gate"),
        (b"\n \n", 4, "non_empty_gate"),
        (b"<svg>\xff\xfe</svg>\n", 4, "utf8_gate"),
        ('<svg xmlns="a">é</svg>\n'.encode(), 1, "ascii_gate"),
        (b"no drawing at all\n", 1, "svg_row_gate"),
    ],
)
def test_a_bad_data_set_is_named_and_leaves_the_run_as_it_was(
    tmp_path: Path, content: bytes, code: int, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    run = new_run(tmp_path / "run")
    rows = tmp_path / "rows.txt"
    rows.write_bytes(content)
    capfd.readouterr()
    assert train(run, "--data", str(rows), *TRAIN, "--json") == code
    assert said in error_of(capfd.readouterr().out)
    assert DatasetQc.load(run.path).status == "fail"
    assert not (run.path / "dataset").exists()
    assert not run.tokenizer.exists()


def test_a_tokenizer_of_another_run_is_refused(
    copy: RunDir, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = new_run(tmp_path / "other")
    rows = tmp_path / "rows.txt"
    rows.write_text("".join(f"<svg><g/>{'<g/>' * n}</svg><eos>\n" for n in range(20)))
    assert train(other, "--data", str(rows), *TRAIN, "--no-promote") == 0
    shutil.copy(other.tokenizer, copy.tokenizer)
    capfd.readouterr()
    assert train(copy, "--resume", "--json") == 4
    assert "expected the tokenizer" in error_of(capfd.readouterr().out)
    assert main(["run", str(copy.path), "-p", "a", "--json"]) == 4
    assert "expected the tokenizer" in error_of(capfd.readouterr().out)


def test_another_data_set_is_refused(copy: RunDir, tmp_path: Path) -> None:
    rows = tmp_path / "rows.txt"
    rows.write_text("<svg></svg><eos>\n")
    assert train(copy, "--resume", "--data", str(rows)) == 2
    with (copy.path / "dataset" / "train.txt").open("a") as file:
        file.write("<svg></svg><eos>\n")
    assert train(copy, "--resume") == 4, "the run's own rows were changed"


def test_a_replacement_that_is_killed_gives_the_training_back(copy: RunDir) -> None:
    before = result(copy)
    dies = (
        "import os, pathlib, sys\n"
        "from lockstep.artifacts import RunDir\n"
        "from lockstep.training.settings import replacing_training\n"
        "run = RunDir(pathlib.Path(sys.argv[1]))\n"
        "with replacing_training(run, keep_data=False):\n"
        "    run.tokenizer.write_text('of the new training')\n"
        "    os._exit(9)\n"
    )
    subprocess.run([sys.executable, "-c", dies, str(copy.path)], check=False)
    assert not copy.checkpoints.exists()
    assert train(copy, "--resume", *ALONE) == 0
    assert result(copy) == before
    assert not [path for path in copy.path.iterdir() if "replaced" in path.name]


def test_a_training_with_no_step_left_has_no_speed(copy: RunDir) -> None:
    assert train(copy, "--resume", *ALONE) == 0
    report = TrainReport.load(copy.path, E2E_FILE)
    assert report.train_tok_s is None
    assert report.not_measured["train_tok_s"]
    assert report.resumed_from_step == report.steps == STEPS


def test_telemetry_with_a_gap_is_refused(copy: RunDir) -> None:
    lines = copy.metrics.read_bytes().splitlines(keepends=True)
    for kept in (lines[:9] + lines[10:], []):
        copy.metrics.write_bytes(b"".join(kept))
        assert train(copy, "--resume", *ALONE) == 4


def test_a_run_with_a_training_at_work_is_not_replaced(copy: RunDir) -> None:
    with sole_training(copy):
        assert main(["init", str(copy.path), *INIT, "--force"]) == 2
    assert copy.metrics.exists()


def test_force_starts_again_and_checks_before_it_removes(
    copy: RunDir, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.txt"
    rows.write_text("no drawing\n")
    before = result(copy)
    assert train(copy, "--force", "--resume") == 2
    assert train(copy, "--force", "--lr=0") == 2
    assert train(copy, "--force", "--data", str(rows)) == 1
    assert train(copy, "--force", "--data", str(tmp_path / "none.txt")) == 4
    assert DatasetQc.load(copy.path).status == "pass"
    assert result(copy) == before
    assert train(copy, "--force", *TRAIN, *ALONE) == 0, "with the data that the run has"
    assert result(copy) == before, "the same training from the start"
    first, second = current(read_lines(copy.ledger, LedgerRow))
    assert second.parent_run_id == first.run_id
    capfd.readouterr()
    assert main(["promote", str(copy.path), "--json"]) == 0
    selected = json.loads(capfd.readouterr().out)["selected"]
    assert (selected["run_id"], selected["stage_pass"]) == (second.run_id, 2)
    assert TrainingPlan.load(copy.path).stages[0].runs[1].run_id == second.run_id


def test_a_held_out_row_among_the_training_rows_is_refused(tmp_path: Path, data: Path) -> None:
    leaky = shutil.copytree(data, tmp_path / "leaky")
    row = (leaky / "holdout.txt").read_text().splitlines()[0]
    with (leaky / "train.txt").open("a") as file:
        file.write(row + "\n")
    run = new_run(tmp_path / "run")
    assert train(run, "--data", str(leaky), *TRAIN) == 1
    assert not run.tokenizer.exists()


def test_damaged_promoted_weights_are_refused(copy: RunDir) -> None:
    with (copy.weights).open("r+b") as file:
        file.seek(5000)
        file.write(b"\x01\x02\x03")
    assert main(["run", str(copy.path), "-p", "[circle]"]) == 4


def test_what_does_not_exist_is_no_traceback(tmp_path: Path) -> None:
    assert main(["run", str(tmp_path / "no"), "-p", "x"]) == 4
    assert main(["train", str(tmp_path / "no")]) == 4
    assert main(["train", str(tmp_path / "no"), "--force"]) == 4
    run = new_run(tmp_path / "run")
    assert train(run) == 2, "no data"
    assert main(["run", str(run.path), "-p", "x"]) == 2, "initial weights"
    assert main(["promote", str(run.path)]) == 2, "no checkpoint"
    assert main(["init", "/sys/run", *INIT]) == 3, "a place that nobody can write"
    assert main(["init", str(tmp_path / "odd"), "--embed-dim=30", "--num-heads=4"]) == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes wherever it likes")
def test_a_read_only_run_is_said_to_be_one(copy: RunDir) -> None:
    copy.path.chmod(0o555)
    assert train(copy, "--resume") == 3
    copy.path.chmod(0o755)


def test_a_loss_that_is_no_number_stops_the_training(trained: RunDir) -> None:
    config, settings = TrainConfig.load(trained.path), TrainSettings.load(trained.path)
    model = model_of(config.template, config.family_config)
    adamw = OptimizerSpec(weight_decay=config.adamw.weight_decay)
    built = training_program(model.family, model.config, batch=2, tokens=32, optimizer=adamw)
    session = TrainingSession(built.program, batch=2, tokens=32)
    for array in session.parameters().values():
        array[...] = np.nan
    session.begin()
    windows = Windows(np.zeros((4, 32), np.int32), np.zeros((4, 32), np.int32))
    budget = Budget.of(settings, 4)
    loop = Loop(
        session=session, batches=Batches(windows, 1), settings=replace(settings, save_every=0),
        schedule=schedule_of(settings, budget), budget=budget, observer=_Nobody(),
    )  # fmt: skip
    with pytest.raises(GateError, match="step 1: loss: expected a finite number, got nan"):
        loop.run(Position(0, Cursor(), 0), StopRequest())


class _Nobody:
    """Is told about nothing: the loop has to stop before."""

    def stepped(self, row: MetricRow) -> None:
        raise AssertionError(row)

    def save(self, position: Position, reason: str) -> None:
        raise AssertionError(position)
