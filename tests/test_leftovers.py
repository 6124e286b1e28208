"""What a killed export leaves is removed by the next one; what a living one works in stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from model_directories import sentencepiece_file

from lockstep.cli.main import main
from lockstep.formats.atomic import clear_leftovers, replace_directory, workplace

WORKS = """
import sys, time
from pathlib import Path
from lockstep.formats.atomic import workplace
with workplace(Path(sys.argv[1])) as holder:
    (holder / "half").mkdir()
    print(holder, flush=True)
    time.sleep(600)
"""
# Stops where the old directory is gone and the new one is not there yet.
REPLACES = """
import os, sys, time
from pathlib import Path
from lockstep.formats import atomic
renamed = os.rename
def once(*names):
    renamed(*names)
    print(names[1], flush=True)
    time.sleep(600)
atomic.os.rename = once
atomic.replace_directory(Path(sys.argv[2]), Path(sys.argv[1]))
"""


@contextmanager
def worker(script: str, *arguments: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process that has come to where it waits, and what it says of it."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process, Path(process.stdout.readline().strip())
    finally:
        killed(process)
        process.stdout.close()


def killed(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def hidden(path: Path) -> list[Path]:
    return [each for each in path.iterdir() if each.name.startswith(".")]


def test_a_workplace_goes_when_its_process_is_dead(tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    with worker(WORKS, out) as (process, holder):
        clear_leftovers(out)
        with workplace(out) as own:
            assert set(hidden(tmp_path)) == {holder, own}
        assert hidden(tmp_path) == [holder]
        killed(process)
        clear_leftovers(tmp_path / "other.gguf")
        assert hidden(tmp_path) == [holder], "it is another's"
        clear_leftovers(out)
    assert hidden(tmp_path) == []


def test_what_a_killed_process_had_replaced_comes_back(tmp_path: Path) -> None:
    out, new = tmp_path / "hf", tmp_path / "new"
    for path in (out, new):
        path.mkdir()
        (path / "name").write_text(path.name)
    with worker(REPLACES, out, new) as (process, _):
        assert not out.exists()
        killed(process)
    clear_leftovers(out)
    assert (out / "name").read_text() == "hf"
    assert hidden(tmp_path) == []
    replace_directory(new, out)
    assert (out / "name").read_text() == "new"
    assert hidden(tmp_path) == []


def test_the_next_export_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    model = sentencepiece_file(tmp_path / "model.gguf")
    folder = tmp_path / "out"
    folder.mkdir()
    command = ["export", str(model), "--to", "hf", "-o", str(folder / "hf")]
    process = subprocess.Popen(
        [sys.executable, "-m", "lockstep.cli.main", *command], text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ,
    )  # fmt: skip
    while not hidden(folder) and process.poll() is None:
        time.sleep(0.01)
    killed(process)
    assert hidden(folder), "it was killed while it worked"
    assert main(command) == 0
    assert [path.name for path in folder.iterdir()] == ["hf"]


def test_an_export_that_is_refused_removes_it_as_well(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "m.gguf"
    out.write_text("there")
    with worker(WORKS, out) as (process, _):
        killed(process)
    assert main(["export", "none", "--to", "gguf", "-o", str(out)]) == 2
    assert hidden(tmp_path) == []
