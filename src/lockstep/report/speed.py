"""How fast training ran, next to PyTorch where that was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

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
    """Bars, comparisons in words, and each reason why something was not measured."""

    bars: tuple[Bar, ...]
    words: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]
    not_measured: tuple[tuple[str, tuple[str, ...]], ...]
    lack: str


def speed_of(run: RunEvidence) -> Speed:
    """The step profile of the run, for people."""
    found = run.speed
    if found is None:
        lack = run.lack(StepProfile.file)
        return Speed(bars=(), words=_canaries(run), facts=(), not_measured=(), lack=lack)
    rates = [("this engine", found.train_tok_s), ("PyTorch", found.torch_tok_s)]
    known = [(name, value) for name, value in rates if value is not None]
    widest = max((value for _, value in known), default=0.0) or 1.0
    words = list(_canaries(run))
    if found.torch_tok_s:
        ratio = found.train_tok_s / found.torch_tok_s
        words.insert(0, f"{ratio:.2f}× the tokens per second of PyTorch.")
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
        words=tuple(words),
        facts=tuple(facts),
        not_measured=_by_reason(found.not_measured),
        lack="",
    )


def _canaries(run: RunEvidence) -> tuple[str, ...]:
    """How long a step of a canary took on both sides, which did the same work."""
    words = []
    for canary in run.canaries:
        if canary.train and canary.torch and canary.train.loss_curve and canary.torch.loss_curve:
            ours = median(row.step_ms for row in canary.train.loss_curve)
            torch = median(row.step_ms for row in canary.torch.loss_curve)
            words.append(
                f"A step of canary {canary.row} took {ours:.3g} ms here and {torch:.3g} ms in "
                f"PyTorch (medians over {len(canary.torch.loss_curve)} steps)."
            )
    return tuple(words)


def _by_reason(reasons: Mapping[str, str]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Each reason once, with the names that it holds for."""
    found: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        found.setdefault(reason, []).append(name)
    return tuple((reason, tuple(names)) for reason, names in found.items())
