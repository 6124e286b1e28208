"""The verbs of a run on their edges: numbers that no machine bears, data without tags, few rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from training_run import INIT, TRAIN, new_run, small_corpus, train

from lockstep.artifacts import RunDir
from lockstep.artifacts.pipeline_report import PipelineReport
from lockstep.artifacts.post_train_eval import PostTrainEval
from lockstep.cli.main import main
from lockstep.data.grammar import prompt_from_tags

pytestmark = pytest.mark.usefixtures("quick_builds")

SHORT = (*TRAIN, "--total-tokens=64", "--epochs=1")


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run that was not trained, with its data beside it; tests must not train it."""
    root = tmp_path_factory.mktemp("fresh")
    small_corpus().save(root / "data")
    return new_run(root / "run")


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("grad-accum", 10**12), ("batch-size", 10**12), ("epochs", 10**18), ("epochs", 0),
        ("total-tokens", 0), ("total-tokens", 10**30), ("threads", 10**4), ("seed", -1),
        ("seed", 2**80), ("bpe-vocab-size", 10**12), ("max-grad-norm", "nan"),
        ("max-grad-norm", "inf"), ("lr", 0), ("lr", "nan"), ("seq-len", 0),
    ],
)  # fmt: skip
def test_a_setting_that_no_machine_bears_is_named_before_anything_is_done(
    fresh: RunDir, capfd: pytest.CaptureFixture[str], flag: str, value: object
) -> None:
    data = fresh.path.parent / "data"
    assert train(fresh, "--data", str(data), f"--{flag}={value}", "--json") == 2
    error = json.loads(capfd.readouterr().out)["error"]
    assert error["message"].startswith(f"--{flag}: expected ")
    assert error["hint"]
    assert not fresh.tokenizer.exists()
    assert not (fresh.path / "dataset").exists()


@pytest.mark.parametrize(
    "flag",
    ["eval-samples=0", "eval-samples=-1", "eval-temperature=nan", "min-valid-svg-rate=nan",
     "min-valid-svg-rate=2", "min-faithfulness=-1"],
)  # fmt: skip
def test_an_evaluation_of_nonsense_is_refused_before_the_training(fresh: RunDir, flag: str) -> None:
    assert train(fresh, "--data", str(fresh.path.parent / "data"), f"--{flag}") == 2
    assert not fresh.tokenizer.exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--batch-size=4096", "--grad-accum=4096"), "sequences in a step"),
        (("--pack-mode=stream", f"--total-tokens={10**12}"), "in a stream"),
    ],
)
def test_what_no_memory_holds_is_refused(
    fresh: RunDir, capfd: pytest.CaptureFixture[str], flags: tuple[str, ...], said: str
) -> None:
    assert train(fresh, "--data", str(fresh.path.parent / "data"), *flags, "--json") == 2
    assert said in json.loads(capfd.readouterr().out)["error"]["message"]
    assert not fresh.tokenizer.exists()


@pytest.mark.parametrize(
    "flag",
    [
        "--adamw-beta1=1", "--adamw-beta2=2", "--adamw-eps=0", "--adamw-weight-decay=nan",
        "--adamw-weight-decay=-1", "--seed=-1", "--seed=99999999999999999999", "--layers=0",
    ],
)  # fmt: skip
def test_a_model_of_nonsense_is_not_made(tmp_path: Path, flag: str) -> None:
    assert main(["init", str(tmp_path / "run"), *INIT, flag]) == 2
    assert not (tmp_path / "run").exists()


def test_a_model_that_no_memory_holds_is_not_made(tmp_path: Path) -> None:
    heads = ("--num-heads=8192", "--num-kv-heads=8192")
    flags = ("--layers=1000", "--embed-dim=1048576", *heads)
    assert main(["init", str(tmp_path / "run"), *INIT, *flags]) == 5
    assert not (tmp_path / "run").exists()


def test_rows_without_tags_are_trained_on_and_not_judged(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    for name, radii in (("train", range(1, 9)), ("dev", range(0)), ("holdout", range(9, 11))):
        rows = (f'<svg viewBox="0 0 9 9"><circle r="{r}"/></svg>\n' for r in radii)
        (tmp_path / "data" / f"{name}.txt").write_text("".join(rows))
    run = new_run(tmp_path / "run")
    assert train(run, "--data", str(tmp_path / "data"), *SHORT, "--epochs=4") == 0
    assert "no drawings were judged: holdout.txt:1" in capfd.readouterr().out
    found = PostTrainEval.load(run.path)
    assert (found.status, found.valid_svg_rate) == ("skipped", None)
    assert PipelineReport.load(run.path).post_train_eval.status == "skipped"


def test_run_says_which_prompt_some_tags_mean(
    fresh: RunDir, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def notes(prompt: str, *flags: str) -> Any:
        capfd.readouterr()
        assert main(["run", str(run.path), "-p", prompt, "-n", "2", *flags]) == 0
        return capfd.readouterr().err

    run = new_run(tmp_path / "run")
    assert train(run, "--data", str(fresh.path.parent / "data"), *SHORT, "--eval-samples=1") == 1
    complete = prompt_from_tags(["[circle]"]).text
    assert complete in notes("[circle]")
    assert complete in notes("[circle]", "--json")
    assert notes(complete) == notes(complete + "<svg") == notes("<svg") == ""
    assert main(["run", str(run.path), "-p", "<svg", "--stop", ""]) == 2
    assert main(["run", str(run.path), "-p", "<svg", "--threads", "0"]) == 2
