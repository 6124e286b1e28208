"""Training that is killed, stopped or out of disk goes on and ends with the same bits."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from training_run import (
    ALONE,
    SAVE_EVERY,
    STEPS,
    TRAIN,
    new_run,
    result,
    small_corpus,
    start,
    train,
)

from lockstep.artifacts import RunDir, read_lines
from lockstep.artifacts.loss_curve import LossCurve
from lockstep.artifacts.metrics import MetricRow
from lockstep.artifacts.run_ledger import LedgerRow, current
from lockstep.engine.checkpoint import list_checkpoints

pytestmark = pytest.mark.usefixtures("quick_builds")

PATIENCE_SECONDS = 120


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    directory = tmp_path_factory.mktemp("data")
    small_corpus().save(directory)
    return ("--data", str(directory), *TRAIN, *ALONE)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, flags: tuple[str, ...]) -> dict[str, Any]:
    """What a training that nothing interrupts ends with."""
    run = new_run(tmp_path_factory.mktemp("runs") / "whole")
    assert train(run, *flags) == 0
    return result(run)


def _rows(run: RunDir) -> tuple[MetricRow, ...]:
    return read_lines(run.metrics, MetricRow) if run.metrics.exists() else ()


def _wait(process: Any, ready: Callable[[], bool]) -> bool:
    """Waits until something is true; false if the process ended before."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if ready():
            return True
        if process.poll() is not None:
            return False
        time.sleep(0.001)
    raise AssertionError("the training neither went on nor ended")


def _kill_at_random_moments(run: RunDir, flags: tuple[str, ...], n_kills: int, seed: int) -> int:
    """Trains on, killed again and again; returns how many kills struck a living training."""
    rng = random.Random(seed)
    struck = 0
    for _ in range(n_kills):
        before = len(_rows(run))
        last = _rows(run)[-1].step if before else 0
        process = start(run, *flags, "--resume")
        # Anywhere in the work: before the first step, between steps, while a checkpoint is saved.
        target = before + rng.choice((0, 1, rng.randrange(1, 2 * SAVE_EVERY)))
        alive = _wait(process, lambda: len(_rows(run)) >= target)  # noqa: B023 -- called at once
        if alive:
            time.sleep(rng.random() * 0.02)
            struck += process.poll() is None
        process.kill()
        process.communicate()
        rows = _rows(run)
        if len(rows) > before:
            lost = last + 1 - rows[before].step
            assert 0 <= lost <= SAVE_EVERY, "more was lost than since the last checkpoint"
        if (run.path / LossCurve.file).exists():
            LossCurve.load(run.path)  # whole, whenever the process died
    return struck


@pytest.mark.parametrize(
    "n_kills", [4, pytest.param(50, marks=pytest.mark.slow)], ids=["few", "fifty"]
)
def test_killed_at_random_moments_it_ends_with_the_same_bits(
    tmp_path: Path, flags: tuple[str, ...], whole: dict[str, Any], n_kills: int
) -> None:
    struck, n_runs = 0, 0
    while struck < n_kills:
        run = new_run(tmp_path / f"run{n_runs}")
        n_runs += 1
        struck += _kill_at_random_moments(run, flags, min(8, n_kills - struck), seed=n_runs)
        assert train(run, *flags, "--resume") == 0
        assert result(run) == whole
        (row,) = current(read_lines(run.ledger, LedgerRow))
        assert row.status == "completed"
        assert not [p for p in run.checkpoints.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_polite_stop_saves_and_goes_on(
    tmp_path: Path, flags: tuple[str, ...], whole: dict[str, Any], number: signal.Signals
) -> None:
    run = new_run(tmp_path / "run")
    process = start(run, *flags)
    assert _wait(process, lambda: len(_rows(run)) >= 3)
    process.send_signal(number)
    said, _ = process.communicate()
    assert process.returncode == 128 + number
    assert "go on with `lockstep train run --resume`" in said
    (row,) = current(read_lines(run.ledger, LedgerRow))
    assert row.status == "interrupted"
    stopped = _rows(run)[-1].step
    assert list_checkpoints(run.checkpoints)[-1].name == f"step_{stopped:08d}", "nothing was lost"
    assert train(run, *flags, "--resume") == 0
    assert result(run) == whole
    assert len(_rows(run)) == STEPS, "no step was done twice"


def test_a_second_training_of_the_run_is_kept_out(
    tmp_path: Path, flags: tuple[str, ...], whole: dict[str, Any]
) -> None:
    run = new_run(tmp_path / "run")
    process = start(run, *flags)
    assert _wait(process, lambda: len(_rows(run)) >= 1)
    process.send_signal(signal.SIGSTOP)
    assert train(run, *flags, "--resume") == 2
    process.send_signal(signal.SIGCONT)
    process.communicate()
    assert process.returncode == 0
    assert result(run) == whole


def test_a_full_disk_is_said_and_nothing_is_lost(
    tmp_path: Path, flags: tuple[str, ...], whole: dict[str, Any]
) -> None:
    run = new_run(tmp_path / "run")
    process = start(run, *flags)
    assert _wait(process, lambda: len(_rows(run)) >= SAVE_EVERY + 2)
    process.kill()
    process.communicate()
    before = {p.name for p in list_checkpoints(run.checkpoints)}

    # Files of more than 128 KiB fail: every checkpoint, and nothing else.
    process = start(run, *flags, "--resume", most_bytes=1 << 17)
    _, said = process.communicate()
    assert process.returncode == 3, said
    assert "checkpoints" in said
    assert "hint:" in said
    assert "Traceback" not in said
    assert {p.name for p in list_checkpoints(run.checkpoints)} == before
    assert current(read_lines(run.ledger, LedgerRow))[-1].status == "failed"
    assert train(run, *flags, "--resume") == 0
    assert result(run) == whole


def test_a_damaged_checkpoint_is_skipped_and_named(
    tmp_path: Path,
    flags: tuple[str, ...],
    whole: dict[str, Any],
    capfd: pytest.CaptureFixture[str],
) -> None:
    run = new_run(tmp_path / "run")
    assert train(run, *flags) == 0
    newest = list_checkpoints(run.checkpoints)[-1]
    os.truncate(newest / "moments.safetensors", 1000)
    capfd.readouterr()
    assert train(run, *flags, "--resume") == 0
    assert f"skipped checkpoint {newest.name}" in capfd.readouterr().out
    assert result(run) == whole
    for path in list_checkpoints(run.checkpoints):
        (path / "state.json").write_text("{}")
    assert train(run, *flags, "--resume") == 4
