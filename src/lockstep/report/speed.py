"""How fast training ran, next to PyTorch where that was measured."""

from __future__ import annotations

from dataclasses import dataclass

from lockstep.artifacts.step_profile import StepProfile
from lockstep.report.evidence import RunEvidence


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One figure; `share` of the widest bar with the same unit, from 0 to 1."""

    name: str
    value: float
    unit: str
    share: float


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Bars, the ratio in words, and what was not measured with its reason."""

    bars: tuple[Bar, ...]
    ratio: str
    facts: tuple[tuple[str, str], ...]
    not_measured: tuple[tuple[str, str], ...]
    lack: str


def speed_of(run: RunEvidence) -> Speed:
    """The step profile of the run, for people."""
    found = run.speed
    if found is None:
        return Speed(bars=(), ratio="", facts=(), not_measured=(), lack=run.lack(StepProfile.file))
    rates = [("this engine", found.train_tok_s), ("PyTorch", found.torch_tok_s)]
    known = [(name, value) for name, value in rates if value is not None]
    widest = max((value for _, value in known), default=0.0) or 1.0
    ratio = ""
    if found.torch_tok_s:
        ratio = f"{found.train_tok_s / found.torch_tok_s:.2f}× the tokens per second of PyTorch"
    facts = [
        ("steps", f"{found.steps}"),
        ("tokens per step", f"{found.tokens_per_update}"),
        ("tokens in all", f"{found.processed_tokens:,}".replace(",", " ")),
        ("time per step", f"{found.ck_avg_step_ms:.3g} ms"),
        ("threads", f"{found.threads}"),
    ]
    if found.decode_tok_s is not None:
        facts.append(("decoding", f"{found.decode_tok_s:,.0f} tokens/s".replace(",", " ")))
    if found.peak_bytes is not None:
        facts.append(("peak memory", f"{found.peak_bytes / 2**20:.1f} MiB"))
    bars = (
        Bar(name=name, value=value, unit="tokens/s", share=value / widest) for name, value in known
    )
    return Speed(
        bars=tuple(bars),
        ratio=ratio,
        facts=tuple(facts),
        not_measured=tuple(found.not_measured.items()),
        lack="",
    )
