"""Canary, regimen and GO: what they must pass, and the faults that they must catch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import isnan, nan
from pathlib import Path

import numpy as np
import pytest
from training_run import ALONE, TRAIN, new_run, small_corpus, train

from lockstep.artifacts import RunDir, read_lines
from lockstep.artifacts.metrics import MetricRow
from lockstep.artifacts.pipeline_report import CANARY_FILE, PipelineReport
from lockstep.artifacts.regimen import Regimen
from lockstep.artifacts.stage_evidence import Digests
from lockstep.artifacts.train_config import TrainConfig
from lockstep.artifacts.train_report import TrainReport
from lockstep.artifacts.train_torch_ref import TorchReference
from lockstep.cli.main import main
from lockstep.engine.checkpoint import load_checkpoint
from lockstep.errors import InputError
from lockstep.proof import replay as replay_module
from lockstep.proof import stages, stitch
from lockstep.proof.canary import judge, run_canaries
from lockstep.proof.differences import curve_difference, tensor_difference
from lockstep.proof.fingerprint import SOURCE, fingerprint_of
from lockstep.proof.go import evaluate_go
from lockstep.proof.regimen import UNCHANGED, run_regimen
from lockstep.proof.replay import Snapshot
from lockstep.proof.twin import Recipe, Twin
from lockstep.training.create import ModelRequest

pytestmark = pytest.mark.usefixtures("quick_builds")

SMALL = ModelRequest(
    layers=1, embed_dim=32, hidden_dim=48, num_heads=4, num_kv_heads=2, vocab_size=200,
    context_len=32,
)  # fmt: skip
FEW = {"bpe_vocab_size": 200, "seq_len": 32, "total_tokens": 64}
CHECKLIST = Path(__file__).parent / "golden" / "checklist" / "go.py"
GOOD = [(1, 2.0), (2, 1.5), (3, 1.0)]


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run with all of its evidence; tests must not change it."""
    data = tmp_path_factory.mktemp("data")
    small_corpus().save(data)
    run = new_run(tmp_path_factory.mktemp("runs") / "ready")
    assert train(run, "--data", str(data), *TRAIN, *ALONE) == 0
    results = run_canaries(run, data / "train.txt", model=SMALL, settings=FEW)
    assert all(result.passed for result in results), [r.report.failures for r in results]
    assert run_regimen(run).summary.passed
    return run


@pytest.fixture
def run(ready: RunDir, tmp_path: Path) -> RunDir:
    """A copy of the run, to be spoiled."""
    shutil.copytree(ready.path, tmp_path / "copy", symlinks=True)
    return RunDir(tmp_path / "copy")


def test_equal_curves_pass_and_are_counted() -> None:
    found = curve_difference(GOOD, [(1, 2.0), (2, 1.25), (3, 1.0)], 3)
    assert (found.n, found.maximum, found.mean, found.problem) == (3, 0.25, 0.25 / 3, "")


@pytest.mark.parametrize(
    ("curve", "problem"),
    [
        ([], "empty"),
        (GOOD[:2], "2 of 3 steps"),
        ([*GOOD, (4, 0.9)], "4 of 3 steps"),
        ([(1, 2.0), (3, 1.5), (4, 1.0)], "has step 3"),
        ([(1, 2.0), (1, 1.5), (3, 1.0)], "has step 1"),
        ([(2, 2.0), (1, 1.5), (3, 1.0)], "has step 2"),
        ([(1, 2.0), (2, nan), (3, 1.0)], "not finite at step 2"),
        ([(1, 2.0), (2, float("inf")), (3, 1.0)], "not finite at step 2"),
    ],
)
def test_a_spoiled_curve_fails_on_either_side(curve: list, problem: str) -> None:
    for found in (curve_difference(curve, GOOD, 3), curve_difference(GOOD, curve, 3)):
        assert problem in found.problem
        assert found.n == 0
        assert isnan(found.maximum)


def test_spoiled_tensors_fail_before_any_number() -> None:
    one = {"w": np.ones(3, np.float32)}
    assert tensor_difference(one, {"w": np.array([1.0, 1.0, 1.5])}).maximum == 0.5
    for other in (
        {},
        {"v": one["w"]},
        {**one, "v": one["w"]},
        {"w": np.ones(4)},
        {"w": np.array([1.0, nan, 1.0])},
        {"w": np.zeros(0)},
    ):
        found = tensor_difference(one, other)
        assert found.problem
        assert isnan(found.maximum)


@pytest.mark.torch
def test_everything_in_place_is_a_go_for_us_and_for_the_checklist(ready: RunDir) -> None:
    go = evaluate_go(ready)
    assert go.go, go.evidence
    assert [check.compared > 0 for check in go.evidence] == [True] * 7
    assert _checklist(ready) == {"GO": True, "checks": go.checks}
    assert main(["go", str(ready.path)]) == 0


@pytest.mark.torch
def test_canary_files_hold_pytorchs_own_numbers(ready: RunDir) -> None:
    canary = ready.canary(1)
    work = canary.latest_work()
    assert work is not None
    ours, theirs = TrainReport.load(work), TorchReference.load(work)
    assert [row.loss_pt for row in ours.loss_curve] == [row.loss for row in theirs.loss_curve]
    assert [row.loss_ck for row in ours.loss_curve] != [row.loss_pt for row in ours.loss_curve]
    assert ours.params_sha256 != theirs.params_sha256  # two honest float32 trainings
    assert 0 < (ours.final_param_max_abs_diff or 0) < 1e-4
    assert len(ours.loss_curve) == 20  # ten epochs of 64 tokens in windows of 32


def _curve(report: TrainReport, change: Callable[[list], list]) -> TrainReport:
    return replace(report, loss_curve=tuple(change(list(report.loss_curve))))


def _add(rows: list, step: int, value: float) -> list:
    row = rows[step - 1]
    return [*rows[: step - 1], replace(row, loss_ck=row.loss_ck + value), *rows[step:]]


@pytest.mark.torch
@pytest.mark.parametrize(
    ("fault", "failed"),
    [
        (lambda report: _curve(report, lambda rows: _add(rows, 7, 2e-4)), "loss_max"),
        (lambda report: _curve(report, lambda rows: rows[:-1]), "loss_max"),
        (lambda report: _curve(report, lambda rows: rows[1:]), "loss_max"),
        (
            lambda report: _curve(
                report, lambda rows: [replace(r, loss_ck=r.loss_ck + 6e-5) for r in rows]
            ),
            "loss_mean",
        ),
    ],
)
def test_canary_fails_on_a_spoiled_curve(run: RunDir, fault: Callable, failed: str) -> None:
    result = _judged_again(run, fault, lambda parameters: parameters)
    assert not result.passed
    assert any(c.id.endswith(failed) and c.verdict == "fail" for c in result.report.checks)


@pytest.mark.torch
@pytest.mark.parametrize("spoil", [lambda a: a + np.float32(2e-4), lambda a: a * np.float32(nan)])
def test_canary_fails_on_other_parameters(run: RunDir, spoil: Callable) -> None:
    def one_tensor(parameters: Mapping) -> dict:
        return {**parameters, "norm.weight": spoil(parameters["norm.weight"])}

    result = _judged_again(run, lambda report: report, one_tensor)
    failed = [check.id for check in result.report.checks if check.verdict == "fail"]
    assert failed == ["canary_row1_param_max"]
    assert PipelineReport.load(run.canary(1).path, CANARY_FILE).status == "fail"
    assert not evaluate_go(run).go
    assert _checklist(run)["GO"] is False


def _judged_again(run: RunDir, fault: Callable, change: Callable):
    """The verdict on a canary of which one side was changed; PyTorch's side is on disk."""
    canary = run.canary(1)
    work = canary.latest_work()
    assert work is not None
    recipe = Recipe.of(canary)
    checkpoint = canary.checkpoints / "current"
    ours = load_checkpoint(checkpoint, recipe.model.shapes).parameters
    twin = Twin(reference=TorchReference.load(work), parameters=change(dict(ours)))
    report = PipelineReport.load(canary.path, CANARY_FILE)
    plain = replace(report, checks=report.checks[:3], failures=(), status="pass")
    return judge(canary, 1, fault(TrainReport.load(work)), plain, recipe, twin)


def _break_dataset(run: RunDir) -> None:
    with (run.path / "dataset" / "train.txt").open("a") as file:
        file.write("[circle]<svg></svg><eos>\n")


def _break_tokenizer(run: RunDir) -> None:
    text = run.tokenizer.read_text()
    run.tokenizer.write_text(text + " ")


def _remove_regimen(run: RunDir) -> None:
    (run.path / Regimen.file).unlink()


def _forge_regimen(run: RunDir) -> None:
    path = run.path / Regimen.file
    record = json.loads(path.read_text())
    record["stages"][0]["checks"][0]["figure"] = 1e9
    path.write_text(json.dumps(record))


def _drop_a_stage(run: RunDir) -> None:
    regimen = Regimen.load(run.path)
    left = regimen.stages[1:]
    summary = replace(regimen.summary, total_stages=len(left), passed_stages=len(left))
    replace(regimen, stages=left, summary=summary).save(run.path)


def _change_the_run(run: RunDir) -> None:
    path = run.path / "train_settings.json"
    record = json.loads(path.read_text())
    record["seed"] += 1
    path.write_text(json.dumps(record))


def _change_the_recorded_losses(run: RunDir) -> None:
    lines = run.metrics.read_text().splitlines(keepends=True)
    run.metrics.write_text("".join(lines[:-1]))


def _canary_of_older_code(run: RunDir) -> None:
    report = PipelineReport.load(run.canary(1).path, CANARY_FILE)
    older = {**report.training, SOURCE: "0" * 64}
    replace(report, training=older).save(run.canary(1).path, CANARY_FILE)


def _other_canary_row(run: RunDir) -> None:
    run.canary_data(2).write_text("another row\n")


def _canary_without_torch(run: RunDir) -> None:
    report = PipelineReport.load(run.canary(2).path, CANARY_FILE)
    replace(report, checks=report.checks[:3]).save(run.canary(2).path, CANARY_FILE)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("fault", "lost"),
    [
        (_break_dataset, "dataset_qc_pass"),
        (_break_tokenizer, "tokenizer_exact_match"),
        (_remove_regimen, "D1_E1_F1_pass"),
        (_forge_regimen, "D1_E1_F1_pass"),
        (_drop_a_stage, "D1_E1_F1_pass"),
        (_change_the_run, "D1_E1_F1_pass"),
        (_change_the_recorded_losses, "D1_E1_F1_pass"),
        (_canary_of_older_code, "canary_row1_row2_pass"),
        (_other_canary_row, "canary_row1_row2_pass"),
        (_canary_without_torch, "canary_row1_row2_pass"),
    ],
)
def test_go_falls_with_its_evidence(run: RunDir, fault: Callable, lost: str) -> None:
    fault(run)
    go = evaluate_go(run)
    assert not go.go
    assert not go.checks[lost]
    assert all(check.reason for check in go.evidence if check.verdict != "pass")
    assert main(["go", str(run.path)]) == 1


@pytest.mark.torch
def test_an_unchanged_run_is_not_proved_again(run: RunDir) -> None:
    before = Regimen.load(run.path)
    assert not before.skipped
    assert run_regimen(run) == replace(before, skipped=True, skip_reason=UNCHANGED)
    assert Regimen.load(run.path) == before
    _change_the_run(run)
    assert fingerprint_of(run).digest != before.fingerprint.digest


@pytest.mark.torch
def test_d1_sees_a_wrong_start_and_a_wrong_update(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = stitch.replay

    def wrong_update(recipe: Recipe, *, threads: int):
        return honest(replace(recipe, lrs=tuple(lr * 1.05 for lr in recipe.lrs)), threads=threads)

    monkeypatch.setattr(stitch, "replay", wrong_update)
    found = stitch.runtime_stitch(run, 8).evidence
    assert [c.id for c in found.checks if c.verdict == "fail"] == ["D1_loss_max", "D1_param_max"]

    def wrong_start(recipe: Recipe, *, threads: int):
        start = {id: array * np.float32(1.001) for id, array in recipe.start.items()}
        return honest(replace(recipe, start=start), threads=threads)

    monkeypatch.setattr(stitch, "replay", wrong_start)
    found = stitch.runtime_stitch(run, 8).evidence
    assert "D1_first_loss" in [c.id for c in found.checks if c.verdict == "fail"]


@pytest.mark.torch
def test_d1_names_the_first_gradient_that_is_wrong(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = stitch.start_session

    def one_is_off(recipe: Recipe, *, threads: int):
        session = honest(recipe, threads=threads)
        gradients = session.gradients

        def spoiled() -> dict:
            found = gradients()
            found["norm.weight@grad"] = found["norm.weight@grad"] * np.float32(1.01)
            return found

        session.gradients = spoiled
        return session

    assert stitch.runtime_stitch(run, 1).steps[0].first_bad_tensor is None
    monkeypatch.setattr(stitch, "start_session", one_is_off)
    found = stitch.runtime_stitch(run, 1)
    assert [c.id for c in found.evidence.checks if c.verdict == "fail"] == ["D1_gradients"]
    assert found.steps[0].first_bad_tensor == "norm.weight"
    assert found.steps[0].slots_matched == found.steps[0].slots_compared - 1


@pytest.mark.torch
def test_d1_sees_wrong_inference_and_dimensions_that_are_ignored(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = stitch.inference_program

    def other_eps(source: str) -> str:
        assert "1e-06" in source
        return source.replace("1e-06", "1e-02")

    def wrong(*arguments, **options):
        return honest(*arguments, **options, source_patch=other_eps)

    monkeypatch.setattr(stitch, "inference_program", wrong)
    monkeypatch.setattr(stitch, "refuse_differences", lambda run, found: None)
    found = stitch.runtime_stitch(run, 1).evidence
    assert [c.id for c in found.checks if c.verdict == "fail"] == ["D1_dims", "D1_logits"]


@pytest.mark.torch
def test_stages_pass_for_sgd_which_has_no_moments(tmp_path: Path) -> None:
    small_corpus().save(tmp_path / "data")
    run = new_run(tmp_path / "run")
    flags = ("--data", str(tmp_path / "data"), *TRAIN, *ALONE, "--optimizer=sgd", "--epochs=1")
    assert train(run, *flags) == 0
    regimen = run_regimen(run)
    assert regimen.summary.passed, regimen.stages
    ids = [check.id for stage in regimen.stages for check in stage.checks]
    assert "replay_params" in ids
    assert not [id for id in ids if id.endswith("moments")]


def test_hashes_of_nothing_are_no_evidence(run: RunDir) -> None:
    recipe = Recipe.of(run, 1)
    nothing = Digests(losses="a", params="b", moments=replay_module.NO_TENSORS)
    checks = stages.same_bits("x", "itself", recipe, nothing, nothing, 3)
    assert [check.verdict for check in checks] == ["pass", "pass", "fail"]


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(run: RunDir) -> None:
    path = run.path / TrainConfig.file
    path.write_text(json.dumps({**json.loads(path.read_text()), "vocab_size": 50}))
    with pytest.raises(InputError, match="expected at most 50 ids"):
        Recipe.of(run)


@pytest.mark.torch
def test_e1_sees_a_training_that_is_not_the_recorded_one(run: RunDir) -> None:
    rows = read_lines(run.metrics, MetricRow)
    lines = run.metrics.read_text().splitlines()
    changed = json.loads(lines[3])
    changed["loss"] = float(np.nextafter(rows[3].loss, 9.0))
    run.metrics.write_text("\n".join([*lines[:3], json.dumps(changed), *lines[4:]]) + "\n")
    found = stages.replay_determinism(run, 6).evidence
    failed = [check for check in found.checks if check.verdict == "fail"]
    assert [check.id for check in failed] == ["replay_recorded"]
    assert failed[0].figure == 5


@pytest.mark.torch
def test_e1_sees_bits_that_depend_on_the_threads(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = stages.replay

    def shaky(recipe: Recipe, *, threads: int):
        rates = tuple(lr if threads == 1 else lr * 1.001 for lr in recipe.lrs)
        return honest(replace(recipe, lrs=rates), threads=threads)

    monkeypatch.setattr(stages, "replay", shaky)
    found = stages.replay_determinism(run, 6).evidence
    failed = [check.id for check in found.checks if check.verdict == "fail"]
    assert failed == ["replay_losses", "replay_params", "replay_moments"]


@pytest.mark.torch
def test_f1_sees_a_snapshot_that_forgets_the_gradients(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(self: Snapshot, program) -> None:
        for id, array in self.states.items():
            if not id.endswith("@grad"):
                program.view(id)[...] = array
        for id in self.states:
            if id.endswith("@grad"):
                program.view(id)[...] = 0
        program.call("init")

    monkeypatch.setattr(replay_module.Snapshot, "restore", forgetful)
    assert not stages.replay_accumulation(run).evidence.passed


def _checklist(run: RunDir) -> dict:
    """What the runbook's own one-shot evaluation says."""
    done = subprocess.run(
        [sys.executable, str(CHECKLIST)], env={**os.environ, "RUN": str(run.path)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    answer, _, verdict = done.stdout.strip().rpartition("\n")
    found: dict = json.loads(answer)
    assert verdict == f"GO_EVIDENCE={'PASS' if found['GO'] else 'FAIL'}"
    return found
