"""What the tests of hostile input share: bounds of time and memory, and what a refusal is."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from verify_pair import Pair, make_pair

from lockstep.cli.main import main
from lockstep.verify.engine.budget import memory_now

Said = pytest.CaptureFixture[str]
SECONDS = 30
GROWTH_BYTES = 192 << 20
HEAD = 'schema = "lockstep.claims/1"\n'


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return make_pair(tmp_path)


@pytest.fixture(autouse=True)
def bounds() -> Iterator[None]:
    """Whatever hangs, or fills the memory, is an error."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"no answer in {SECONDS} s")

    before, peak = signal.signal(signal.SIGALRM, stop), memory_now().peak
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    after = memory_now().peak
    assert peak is None or after is None or after - peak < GROWTH_BYTES


def refused(words: list[str], said: Said, codes: tuple[int, ...] = (4,)) -> str:
    """The one message of a command that is refused, with its hint; outputs stay as they were."""
    out = Path(words[-1]).with_name("record.json")
    beside = sorted(path.name for path in out.parent.iterdir())
    code = main([*words, "--out", str(out)])
    text = said.readouterr()
    assert code in codes, text.err
    assert "Traceback" not in text.err
    assert "hint: " in text.err
    assert not out.exists()
    assert sorted(path.name for path in out.parent.iterdir()) == beside
    out.write_text("what was there")
    assert main([*words, "--out", str(out), "--force"]) == code
    assert out.read_text() == "what was there"
    said.readouterr()
    return text.err
