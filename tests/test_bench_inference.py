"""How the inference benchmark judges: what other work disturbed is no figure."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

BENCH = Path(__file__).parent.parent / "bench"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    monkeypatch.setattr("lockstep.native.read_rate.BYTES", 1 << 20)
    return pytest.importorskip("inference")


@dataclass
class Engine:
    """One side whose measurements are listed."""

    measured: list[Any]
    name: str = "lockstep"
    threads: int = 1
    asked: list[Any] = field(default_factory=list)

    def time(self, case: Any) -> Any:
        self.asked.append(case)
        return self.measured.pop(0)


def test_a_disturbed_round_is_measured_again(bench: ModuleType) -> None:
    busy = [0.99, 0.5, 0.99, 0.99]
    engine = Engine([bench.Measured(float(i), share, None) for i, share in enumerate(busy)])
    rounds = bench.rounds_of(bench.PREFILL, [engine], 3)
    assert [r.sides["lockstep"].rate for r in rounds] == [0.0, 2.0, 3.0]


def test_rounds_that_stay_disturbed_fill_up_and_end(bench: ModuleType) -> None:
    engine = Engine([bench.Measured(float(i), 0.99 if i == 3 else 0.5, None) for i in range(9)])
    rounds = bench.rounds_of(bench.PREFILL, [engine], 2)
    assert [r.sides["lockstep"].rate for r in rounds] == [3.0, 0.0]
    assert len(engine.asked) == 4


def test_an_engine_that_failed_is_not_asked_again(bench: ModuleType) -> None:
    engine = Engine([None])
    rounds = bench.rounds_of(bench.PREFILL, [engine], 5)
    assert [r.sides["lockstep"] for r in rounds] == [None]


class Answering:
    """A worker that takes a second of each thread."""

    def ask(self, request: dict[str, int]) -> dict[str, float]:
        return {"seconds": 1.0, "cpu_seconds": 1.0}


def test_a_share_is_of_reads_before_and_after_its_own_decode(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = iter([4e9, 1e9])  # all bytes by all seconds: 2 / (1/4 + 1/1) GB/s
    monkeypatch.setattr(bench, "read_rates", lambda threads, n: [next(rates)])
    monkeypatch.setattr(bench, "REST_SECONDS", 0.0)
    monkeypatch.setattr(bench, "Worker", lambda *started: Answering())
    side = bench.Side("lockstep", "python", Path("a-Q8_0.gguf"), 128, 1)
    measured = side.time(bench.DECODE)
    assert measured.read_gb_s == pytest.approx(1.6)
    assert side.time(bench.PREFILL).read_gb_s is None
    work = SimpleNamespace(bytes_per_token=lambda positions: 10_000_000, operations_per_token=1)
    assert bench.share(bench.DECODE, measured, work, 1.0) == pytest.approx(128 * 0.01 / 1.6)


def test_verdicts_follow_the_figures(bench: ModuleType) -> None:
    peer = bench.Row(
        file="qwen2-0.5b-Q8_0", threads=2, case="decode 128", engine="llama.cpp",
        tokens_per_s=10.0, spread=(9.0, 11.0), busy=0.99, share=0.5, peak_mib=None,
        relative_error=None, cosine=None, ratio=1.3, ratio_spread=(1.2, 1.4), problem="",
    )  # fmt: skip
    ours = replace(peer, engine="lockstep", ratio=None, ratio_spread=None, share=0.8)
    words = [line.rpartition(": ")[2] for line in bench.verdicts([ours, peer]).splitlines()]
    assert words == ["met", "missed"]
    slower = bench.verdicts([replace(ours, share=0.9), replace(peer, ratio=1.2)]).splitlines()
    assert [line.rpartition(": ")[2] for line in slower] == ["missed", "met"]
    disturbed = bench.verdicts([replace(ours, busy=0.5), peer]).splitlines()
    assert all(line.endswith("disturbed, no verdict") for line in disturbed)
    assert " | 80% |  /  |  /  |" in bench.summary([ours, peer])  # nothing is no zero
