"""A home that cannot be written: what is built there already runs, and nothing else does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import which

import pytest
from model_directories import sentencepiece_file

# The right by which root writes where it may not.
UNPRIVILEGED = ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override"]

pytestmark = pytest.mark.skipif(
    os.geteuid() == 0 and which("setpriv") is None, reason="root writes wherever it likes"
)


@contextmanager
def read_only(*directories: Path) -> Iterator[None]:
    for directory in directories:
        directory.chmod(0o555)
    try:
        yield
    finally:
        for directory in directories:
            directory.chmod(0o755)


def lockstep(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lockstep.cli.main", *arguments]
    if os.geteuid() == 0:
        command = [*UNPRIVILEGED, *command]
    environment = {**os.environ, "LOCKSTEP_HOME": str(home)}
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sentencepiece_file(tmp_path_factory.mktemp("model") / "model.gguf")


@pytest.fixture(scope="module")
def home(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home where this model has run, and the answer."""
    home = tmp_path_factory.mktemp("home")
    first = lockstep(home, *run(model))
    assert first.returncode == 0, first.stderr
    (home / "answer").write_text(first.stdout)
    return home


def run(model: Path, context: int = 64) -> list[str]:
    return ["run", str(model), "--raw", "-p", "hello", "-n", "8", "--ctx", str(context)]


@pytest.mark.parametrize("packed", ["kept", "lost"])
def test_a_built_program_runs_from_a_home_that_cannot_be_written(
    packed: str, model: Path, home: Path
) -> None:
    if packed == "lost":  # then the weights are packed again, and not kept
        for file in (home / "build").glob("*.weights"):
            file.unlink()
    before = {*home.rglob("*")}
    with read_only(home / "build", home):
        again = lockstep(home, *run(model))
        seen = lockstep(home, "inspect", str(model), "--ctx", "64")
    assert (again.returncode, again.stdout) == (0, (home / "answer").read_text()), again.stderr
    assert seen.returncode == 0, seen.stderr
    assert before == {*home.rglob("*")}


def test_what_is_not_built_needs_a_home_that_can_be_written(model: Path, home: Path) -> None:
    with read_only(home / "build", home):
        other = lockstep(home, *run(model, context=65))
        seen = lockstep(home, "inspect", str(model), "--ctx", "65")
    assert (other.returncode, seen.returncode) == (3, 3)
    for said in (other.stderr, seen.stdout + seen.stderr):
        assert "expected to write there, got: permission denied" in said
        assert "set LOCKSTEP_HOME to a directory that you can write" in said
    assert lockstep(home, *run(model)).returncode == 0


def test_a_home_that_cannot_be_made_is_said_to_be_one(model: Path, tmp_path: Path) -> None:
    with read_only(tmp_path):
        said = lockstep(tmp_path / "none", *run(model))
    assert said.returncode == 3
    assert "set LOCKSTEP_HOME to a directory that you can write" in said.stderr
