"""One bit that flips anywhere in any format is refused, found at its place, or provably nothing.

The slow run flips 200 bits of each format: `pytest -m slow tests/test_verify_flips.py`.
"""

from __future__ import annotations

import random
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flip_formats import FORMATS, Format, Reading, read, write_in_silence

from lockstep.artifacts.verification import Verification
from lockstep.errors import EnvironmentLacks, InputError
from lockstep.verify.api import Pair, check_pair, exit_code
from lockstep.verify.engine.budget import memory_now
from lockstep.verify.engine.examine import Options

# What a library leaves behind when it fails is not what is tested.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

N_QUICK, N_SLOW = 12, 200
EDGE = 400  # bytes at either end of a file, where headers and directories are
SECONDS = 20
GROWTH_BYTES = 512 << 20  # of the whole process, the libraries' own appetite included


@contextmanager
def a_limit_of_time() -> Iterator[None]:
    """Whatever hangs is an error."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"no answer in {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def flip(root: Path, rng: random.Random) -> tuple[Path, int, int]:
    """Flips a bit of a file: anywhere, or, every other time, near one of its ends."""
    files = sorted(p for p in ([root] if root.is_file() else root.rglob("*"))
                   if p.is_file() and p.stat().st_size)  # fmt: skip
    sizes = [p.stat().st_size for p in files]
    if rng.random() < 0.5:
        (path,) = rng.choices(files, sizes)
        at = rng.randrange(path.stat().st_size)
    else:
        path = rng.choice(files)
        n = path.stat().st_size
        at = rng.choice((rng.randrange(min(n, EDGE)), n - 1 - rng.randrange(min(n, EDGE))))
    bit = rng.randrange(8)
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << bit]))
    return path, at, bit


def different(before: tuple[Any, ...], after: tuple[Any, ...]) -> list[tuple[int, ...]]:
    """The indices of elements whose bits differ, in order."""
    _, shape, old = before
    n = int(np.prod(shape))
    rows = [np.frombuffer(raw, np.uint8).reshape(n, -1) for raw in (old, after[2])]
    flat = np.flatnonzero((rows[0] != rows[1]).any(axis=1))
    return [tuple(int(i) for i in np.unravel_index(at, shape)) for at in flat]


def agrees(report: Verification, clean: Reading, flipped: Reading) -> None:
    """The report has each difference that the library sees, at its place, and no other."""
    rows = {row.target: row for row in report.claims}
    assert set(rows) >= {n for n in clean if n in flipped and clean[n][:2] == flipped[n][:2]
                         and clean[n][0] != "value"}  # fmt: skip
    for name, row in rows.items():
        if name not in clean or clean[name][0] == "value":
            continue  # numbers and words beside the arrays
        places = different(clean[name], flipped[name])
        if not places:
            assert row.verdict == "EXACT_BITS", name
            continue
        assert row.verdict == "FAIL", name
        assert row.difference is not None
        found = row.difference
        assert found.n_differ == len(places), name
        assert found.first.target_index == found.first.source_index == places[0]
        assert found.last.target_index == found.last.source_index == places[-1]
        assert found.first.source == name


def outcome(format: Format, pair: Pair, damaged: Path, clean: Reading) -> str:
    """What is said about a pair of which one side is damaged, held to what the library reads."""
    try:
        with a_limit_of_time():
            report = check_pair(pair, None, Options(max_memory_bytes=8 << 30))
    except InputError as error:
        return "refused" if error.hint else "refused without a hint"
    with a_limit_of_time():
        flipped = read(format, damaged)
    if report.value_exact:
        assert exit_code(report) == 0
        assert not isinstance(flipped, BaseException), f"exact, but it fails: {flipped!r}"
        assert flipped == clean
        return "nothing of it is a value"
    assert exit_code(report) == (1 if any(r.verdict == "FAIL" for r in report.claims) else 2)
    if isinstance(flipped, BaseException):
        return "found"
    if exit_code(report) == 2:
        assert {n: v[:2] for n, v in flipped.items()} != {n: v[:2] for n, v in clean.items()}
        return "found as another name, shape or type"
    agrees(report, clean, flipped)
    return "found at its place"


def run(format: Format, folder: Path, n: int, seed: int) -> Counter[str]:
    """Outcomes of flips, one at a time, three of four on the target's side."""
    if format.missing:
        pytest.skip(f"{', '.join(format.missing)} is not installed")
    rng = random.Random(f"{format.name} {seed}")
    first = write_in_silence(format, folder / "a")
    second = folder / "b" / first.name
    shutil.copytree(folder / "a", folder / "b", symlinks=True)
    pair = Pair(source=first, target=second)
    clean = read(format, first)
    assert not isinstance(clean, BaseException), clean
    report = check_pair(pair, None, Options(max_memory_bytes=8 << 30))
    assert report.value_exact
    assert {row.target for row in report.claims} >= set(clean)
    found: Counter[str] = Counter()
    for i in range(n):
        side = "a" if i % 4 == 0 else "b"
        damaged = folder / side / first.name
        place = flip(damaged, rng)
        try:
            found[outcome(format, pair, damaged, clean)] += 1
        except EnvironmentLacks as error:
            found["refused: " + error.message.partition(":")[0][:20]] += 1
        except BaseException as error:
            error.add_note(f"{format.name}: bit {place[2]} of byte {place[1]} of {place[0]}")
            raise
        shutil.rmtree(folder / side)
        shutil.copytree(folder / ("b" if side == "a" else "a"), folder / side, symlinks=True)
    return found


@pytest.mark.parametrize("name", FORMATS)
def test_a_bit_that_flips_is_refused_or_found(tmp_path: Path, name: str) -> None:
    found = run(FORMATS[name], tmp_path, N_QUICK, 1)
    assert sum(found.values()) == N_QUICK
    assert not found["refused without a hint"]


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_two_hundred_bits_that_flip_are_refused_or_found(tmp_path: Path, name: str) -> None:
    before = memory_now().peak
    found = run(FORMATS[name], tmp_path, N_SLOW, 2)
    after = memory_now().peak
    print(f"{name}: {dict(sorted(found.items()))}")
    assert sum(found.values()) == N_SLOW
    assert not found["refused without a hint"]
    assert before is None or after is None or after - before < GROWTH_BYTES
