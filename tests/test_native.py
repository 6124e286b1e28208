"""Compilers, the build cache, arenas, the thread pool: what a program stands on."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import resource
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path

import pytest

from lockstep.errors import EnvironmentLacks, InputError, UsageError
from lockstep.native import Compiler, Manifest, Program, compile_library, find_compiler, library
from lockstep.native.memory import HUGE_BYTES, allocate

ANSWER = "#include <stdint.h>\nint32_t answer(void) { return 42; }\n"

# A program by hand: one row of `work` for each row of the call, and the number of calls in `io`.
PROGRAM = """
#include <stdint.h>
void lockstep_set_threads(int32_t n) { (void)n; }
int32_t lockstep_call(int32_t entry, void *const *arenas, const int64_t *counts) {
    const int64_t rows = counts[0];
    float *out = arenas[1];
    for (int64_t i = 0; i < rows + (entry == 1); i++) out[i] = (float)i + 1;
    ++*(int32_t *)arenas[0];
    return 0;
}
int32_t lockstep_run_node(int32_t node, void *const *arenas, const int64_t *counts) {
    (void)counts;
    ((float *)arenas[1])[0] = (float)node + 7;
    return 0;
}
"""
MANIFEST = """{
  "schema": "lockstep.program/1", "name": "hand", "mode": "keep", "source_sha256": "",
  "arenas": [{"name": "io", "n_bytes": 64}, {"name": "work", "n_bytes": 128}],
  "values": {
    "calls": {"arena": "io", "offset": 0, "dtype": "i32", "dims": [], "symbols": [],
              "role": "input"},
    "rows": {"arena": "work", "offset": 0, "dtype": "f32", "dims": [16], "symbols": ["rows"],
             "role": "computed"}
  },
  "nodes": [{"index": 3, "id": "node", "op": "add", "section": "forward", "covers": [],
             "inputs": ["calls", null], "outputs": ["rows"], "line": 1, "kernel": "k",
             "instance": "i", "kernel_line": 1, "kernel_source": "ops/add.c:1"}],
  "entries": {"forward": 0, "overrun": 1}, "symbols": {"rows": 16}, "outputs": {},
  "guards": [{"arena": "work", "offset": 64, "n_bytes": 64, "pattern": 165, "after": "rows"}]
}"""


@pytest.fixture
def program() -> Program:
    return Program(compile_library(PROGRAM), Manifest.parse(MANIFEST))


def built_at(source: str) -> tuple[Path, int]:
    path = compile_library(source)
    return path, path.stat().st_mtime_ns


def test_second_build_comes_from_the_cache(home: Path) -> None:
    assert built_at(ANSWER) == built_at(ANSWER)
    assert compile_library(ANSWER).is_relative_to(home)
    assert compile_library(ANSWER + "\n") != compile_library(ANSWER)


@pytest.mark.parametrize("damage", [b"", b"torn", None])
def test_damaged_library_is_built_again(home: Path, damage: bytes | None) -> None:
    path = compile_library(ANSWER)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    assert compile_library(ANSWER).read_bytes() == whole


def test_builds_at_the_same_time_do_not_disturb_each_other(home: Path) -> None:
    made: list[Path] = []
    workers = [threading.Thread(target=lambda: made.append(compile_library(ANSWER))) for _ in "abc"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(made) == 3
    assert len(set(made)) == 1
    assert sorted(p.suffix for p in (home / "build").iterdir()) == [".c", ".sha256", ".so"]


def filed(home: Path) -> set[str]:
    return {path.name for path in (home / "build").iterdir()}


def files_of(library: Path) -> set[str]:
    return {library.with_suffix(suffix).name for suffix in (".so", ".c", ".sha256")}


def test_builds_that_were_not_used_for_longest_make_room(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [compile_library(f"{ANSWER}// {i}\n") for i in range(4)]
    loaded = ctypes.CDLL(str(made[1]))
    size = sum((home / "build" / name).stat().st_size for name in files_of(made[0]))
    (home / "build" / "kept.weights").write_bytes(b"x" * size * 9)
    killed = home / "build" / "building-killed"
    killed.mkdir()
    for i, library_path in enumerate(made):
        for name in files_of(library_path):
            os.utime(home / "build" / name, (1000 + i, 1000 + i))
    os.utime(killed, (1000, 1000))
    compile_library(f"{ANSWER}// 0\n")  # which makes it the one that was used last
    monkeypatch.setattr(library, "MOST_BYTES", 3 * size + size // 2)
    new = compile_library(f"{ANSWER}// new\n")
    kept = files_of(made[0]) | files_of(made[3]) | files_of(new)
    assert filed(home) == {*kept, "kept.weights"}
    assert loaded.answer() == 42, "what is loaded stays"
    assert ctypes.CDLL(str(compile_library(f"{ANSWER}// 1\n"))).answer() == 42


def test_a_compiler_without_room_on_the_disk_says_so(home: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        with pytest.raises(EnvironmentLacks, match="expected room for a library") as caught:
            compile_library(f"{ANSWER}char large[1 << 20] = {{1}};\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "free some space" in str(caught.value)
    assert not [file for file in (home / "build").iterdir() if file.suffix == ".so"]


def test_a_build_that_somebody_may_be_loading_stays(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "MOST_BYTES", 1)
    made = [compile_library(f"{ANSWER}// {i}\n") for i in range(3)]
    assert filed(home) == set().union(*map(files_of, made))


def test_what_zig_keeps_counts_and_goes_where_it_is_too_much(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = compile_library(ANSWER)
    for name in files_of(old):
        os.utime(home / "build" / name, (1000, 1000))
    size = sum((home / "build" / name).stat().st_size for name in files_of(old))
    kept = home / "build" / "zig" / "o" / "part"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(bytes(size))
    monkeypatch.setattr(library, "MOST_BYTES", 5 * size)
    compile_library(f"{ANSWER}// 1\n")
    assert kept.exists(), "a fifth is less than its share"
    assert old.exists()
    kept.write_bytes(bytes(2 * size))
    with library._locked(home / "build" / "zig", fcntl.LOCK_SH):  # as a build that reads it
        new = compile_library(f"{ANSWER}// 2\n")
    assert kept.exists()
    assert not old.exists(), "there is less room for builds"
    compile_library(f"{ANSWER}// 3\n")
    assert list((home / "build" / "zig").iterdir()) == []
    assert new.exists()


@pytest.mark.skipif(find_spec("ziglang") is None, reason="the compiler of ziglang is not installed")
def test_zig_builds_again_after_its_cache_was_emptied(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", f"{sys.executable} -m ziglang cc")
    monkeypatch.setattr(library, "MOST_BYTES", 1 << 12)
    for i in range(2):
        made = compile_library(f"{ANSWER}// {i}\n")
        assert ctypes.CDLL(str(made)).answer() == 42
        assert list((home / "build" / "zig").iterdir()) == []


def test_what_cannot_be_deleted_keeps_no_program_from_being_built(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "MOST_BYTES", 1)
    (home / "build" / "old.so").mkdir(parents=True)
    os.utime(home / "build" / "old.so", (1000, 1000))
    assert ctypes.CDLL(str(compile_library(ANSWER))).answer() == 42


def test_processes_that_build_and_trim_at_once_lose_nothing_that_they_load(home: Path) -> None:
    """Each asks for builds that are old, and has a new one built before it loads them."""
    for i in range(4):
        made = compile_library(f"{ANSWER}// {i}\n")
        for name in files_of(made):
            os.utime(home / "build" / name, (1000, 1000))
    script = (
        "import ctypes, os\n"
        "from lockstep.native import library\n"
        "library.MOST_BYTES = 1\n"
        "for i in range(4):\n"
        f"    path = library.compile_library({ANSWER!r} + f'// {{i}}\\n')\n"
        f"    library.compile_library({ANSWER!r} + f'// {{os.getpid()}} {{i}}\\n')\n"
        "    assert ctypes.CDLL(str(path)).answer() == 42\n"
    )
    command = [sys.executable, "-c", script]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(3)]
    assert [(p.communicate()[1], p.returncode) for p in processes] == [(b"", 0)] * 3


def test_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("LOCKSTEP_HOME", str(tmp_path / "file"))
    with pytest.raises(EnvironmentLacks, match=r"build cache .*: expected to write") as caught:
        compile_library(ANSWER)
    assert caught.value.hint.startswith("set LOCKSTEP_HOME")


def test_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """The builds have no place: what to set is said."""
    monkeypatch.setenv("LOCKSTEP_HOME", "~nobody-of-this-name/builds")
    with pytest.raises(EnvironmentLacks, match="expected a home directory") as caught:
        compile_library(ANSWER)
    assert "LOCKSTEP_HOME" in caught.value.hint


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr("lockstep.native.compiler.find_spec", lambda name: None)
    with pytest.raises(EnvironmentLacks, match="C compiler: expected cc, gcc, clang") as caught:
        find_compiler()
    assert caught.value.exit_code == 3
    assert "pip install ziglang" in caught.value.hint


def test_cc_names_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", f"{find_compiler().command[0]} -g0")
    assert find_compiler().command[1:] == ("-g0",)
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(EnvironmentLacks, match=r"\$CC.*'no-such-compiler'"):
        find_compiler()


def test_complaint_of_the_compiler_is_shown() -> None:
    with pytest.raises(EnvironmentLacks, match=r"model\.c:2:.*error: .*nowhere"):
        compile_library("int f(void) {\n  return nowhere;\n}\n")


def test_compiler_that_does_not_end(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "COMPILE_SECONDS", 0.2)
    spinning = Compiler((sys.executable, "-c", "import time; time.sleep(60)"), "spins")
    with pytest.raises(EnvironmentLacks, match=r"expected an end within 0\.2 s"):
        compile_library(ANSWER, compiler=spinning)
    assert list((home / "build").iterdir()) == []


def test_zig_serves_where_there_is_no_other_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    if find_spec("ziglang") is None:
        pytest.skip("needs ziglang; `pip install ziglang`")
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    assert find_compiler().is_zig
    made = Program(compile_library(PROGRAM), Manifest.parse(MANIFEST))
    made.call("forward", rows=2)
    assert made.view("rows")[:3].tolist() == [1, 2, 0]


def test_views_share_the_memory_of_the_program(program: Program) -> None:
    program.call("forward", rows=3)
    assert program.view("rows")[:4].tolist() == [1, 2, 3, 0]
    program.view("calls")[...] = 10
    program.call("forward")
    assert program.view("calls") == 11
    assert program.view("rows")[15] == 16
    program.run_node("node")
    assert program.view("rows")[0] == 10


def test_guard_behind_a_value_notices_an_overrun(program: Program) -> None:
    program.call("forward")
    assert program.check_guards() == []
    program.call("overrun")
    assert program.check_guards() == ["rows"]


def test_misuse_is_refused(program: Program) -> None:
    for rows in (0, 17):
        with pytest.raises(UsageError, match=f"expected 1 to 16, got {rows}"):
            program.call("forward", rows=rows)
    with pytest.raises(UsageError, match="outs: expected one of the counts"):
        program.call("forward", outs=1)
    with pytest.raises(UsageError, match="got 'backward'"):
        program.call("backward")
    with pytest.raises(UsageError, match="got 'nothing'"):
        program.run_node("nothing")
    with pytest.raises(UsageError, match="got 'nothing'"):
        program.view("nothing")
    with pytest.raises(UsageError, match="expected 1 to 256, got 0"):
        program.set_threads(0)
    program.close()
    with pytest.raises(UsageError, match="closed"):
        program.call("forward")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("program/1", "program/2"),
        ('"rows": 16}, "outputs"', '"outputs"'),
        ('"role": "input"', '"x": 1'),
    ],
)
def test_foreign_manifest_is_refused(before: str, after: str) -> None:
    assert before in MANIFEST
    with pytest.raises(InputError, match=r"manifest: expected schema lockstep\.program/1"):
        Manifest.parse(MANIFEST.replace(before, after))


def test_library_that_does_not_load(tmp_path: Path) -> None:
    path = tmp_path / "bad.so"
    path.write_bytes(b"not a library")
    with pytest.raises(EnvironmentLacks, match=r"bad\.so: expected one that loads"):
        Program(path, Manifest.parse(MANIFEST))


def test_sparse_memory_takes_only_the_pages_that_were_written() -> None:
    arena = allocate(64 * HUGE_BYTES, sparse=True)
    before = _resident_bytes()
    arena[::HUGE_BYTES] = 1
    assert _resident_bytes() - before < 8 * HUGE_BYTES


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


@pytest.mark.parametrize("n_bytes", [0, 1, 4096, HUGE_BYTES + 64])
def test_arenas_are_zeroed_and_aligned(n_bytes: int) -> None:
    arena = allocate(n_bytes)
    assert len(arena) == n_bytes
    assert not arena.any()
    assert n_bytes == 0 or arena.ctypes.data % (HUGE_BYTES if n_bytes >= HUGE_BYTES else 64) == 0
    arena[:] = 1
