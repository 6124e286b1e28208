"""The local environment that `make` sets up: what it says when it cannot, and that it runs once."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def set_up(checkout: Path, *extras: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / ".ci" / "environment", "venv", *extras],
        cwd=checkout,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


@pytest.mark.parametrize("python", ["no-such-python", "false"])
def test_without_a_python_it_says_what_to_do(checkout: Path, python: str) -> None:
    done = set_up(checkout, PYTHON=python)
    assert done.returncode == 3
    assert "expected Python 3.11 or newer" in done.stderr
    assert "PYTHON=" in done.stderr
    assert not (checkout / "venv").exists()


def test_a_python_that_cannot_make_an_environment_is_named(checkout: Path) -> None:
    fake = checkout / "fake-python"
    fake.write_text('#!/bin/sh\ncase "$1" in -c) exit 0 ;; *) exit 1 ;; esac\n')
    fake.chmod(0o755)
    done = set_up(checkout, PYTHON=str(fake))
    assert done.returncode == 3
    assert "python3-venv" in done.stderr


def stamped(checkout: Path, extras: str) -> None:
    """Leaves what the set-up leaves when these extras are there."""
    done = subprocess.run(
        ["cksum"], input=(checkout / "pyproject.toml").read_bytes(), capture_output=True, check=True
    )
    stamp = checkout / "venv" / f"lockstep-{done.stdout.split()[0].decode()}-{extras}"
    stamp.parent.mkdir(exist_ok=True)
    stamp.touch()


def test_it_runs_once_for_each_list_of_packages(checkout: Path) -> None:
    stamped(checkout, "torch,oracle,dev,cc,formats")
    assert set_up(checkout, PYTHON="no-such-python").returncode == 0
    with (checkout / "pyproject.toml").open("a") as file:
        file.write("# another list of packages\n")
    assert set_up(checkout, PYTHON="no-such-python").returncode == 3


def test_the_packages_of_the_demo_are_less_than_everything(checkout: Path) -> None:
    demo = "torch,oracle,cc"
    assert f"environment $(VENV) {demo}\n" in (ROOT / "Makefile").read_text(encoding="utf-8")
    stamped(checkout, demo)
    assert set_up(checkout, demo, PYTHON="no-such-python").returncode == 0
    assert set_up(checkout, PYTHON="no-such-python").returncode == 3
    stamped(checkout, "torch,oracle,dev,cc,formats")
    next((checkout / "venv").glob(f"*-{demo}")).unlink()
    assert set_up(checkout, demo, PYTHON="no-such-python").returncode == 0
