"""Each mutation beside what `verify` says of it and what the usual checks say of it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from conversions import toy
from conversions.conversion import Array, Conversion, Tensors, different
from conversions.faults import Fault
from conversions.part_faults import PARTS, TOY
from conversions.parts import parts
from lockstep.artifacts.verification import VALUE_EXACT, ClaimRow, Verification
from lockstep.verify import check

CHECKS = ("shape, finite", "sums", "close 0.1", "close 1e-2", "close 1e-5", "array_equal")
SECTIONS = (
    "Mapping", "Axes", "Attention", "MLP and experts", "Embeddings", "Values", "State",
)  # fmt: skip
_SECTION_OF = {
    "rope": "Attention", "heads": "Attention", "gate and up": "Mapping", "two layers": "Mapping",
    "k and v": "Mapping", "layers off": "Mapping", "square": "Axes", "two norm": "Mapping",
    "rows of unused": "Embeddings", "row of an unused": "Embeddings", "nu of": "State",
    "mu and nu": "State", "a moment": "State", "step": "State",
}  # fmt: skip

_SAYS = {"rows of unused vocabulary zeroed": ("zero",)}


@dataclass(frozen=True)
class Row:
    """One mutation.  `checks` are those of `CHECKS` that see it; `logits` is text or a reason."""

    section: str
    name: str
    of: str
    caught: bool
    by: str
    named: str
    words: str
    checks: tuple[bool, ...]
    logits: str

    @property
    def marks(self) -> tuple[str, ...]:
        """The cells that do not depend on this machine's floats."""
        return (self.name, "yes" if self.caught else "NO", self.by, self.named,
                *("x" if seen else "-" for seen in self.checks))  # fmt: skip


def faults_of_toy() -> dict[str, tuple[str, Fault]]:
    """Name -> section and fault, of the model in training."""
    found = {
        name: (_section(name), replace(fault, says=fault.says or _SAYS.get(name, ())))
        for name, fault in toy.FAULTS.items()
    }
    for section, faults in TOY.items():
        found |= {name: (section, fault) for name, fault in faults.items()}
    return found


def _section(name: str) -> str:
    return next((s for begin, s in _SECTION_OF.items() if name.startswith(begin)), "Values")


def faults_of_parts() -> dict[str, tuple[str, Fault]]:
    """Name -> section and fault, of the small parts."""
    return {name: (section, fault) for section, faults in PARTS.items()
            for name, fault in faults.items()}  # fmt: skip


def rows(root: Path, *, with_logits: bool) -> list[Row]:
    """All rows, by section."""
    model = toy.toy(_made(root / "toy"))
    found = list(_rows(model, "toy", faults_of_toy(), root, with_logits=with_logits))
    small = parts(_made(root / "parts"))
    found += _rows(small, "parts", faults_of_parts(), root, with_logits=False)
    return sorted(found, key=lambda row: SECTIONS.index(row.section))


def _made(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def _rows(
    conversion: Conversion, of: str, faults: dict[str, tuple[str, Fault]], root: Path, *,
    with_logits: bool,
) -> Iterator[Row]:  # fmt: skip
    good = toy.logits(conversion.tensors) if with_logits else None
    for i, (name, (section, fault)) in enumerate(faults.items()):
        tensors = fault(dict(conversion.tensors), conversion.scheme)
        assert different(tensors, conversion.tensors), name
        target = conversion.write(tensors, root / f"{of}-{i}" / conversion.target.name)
        report = check(conversion.source, target, conversion.claims)
        words, by = said(report, fault)
        yield Row(
            section=section,
            name=name,
            of=of,
            caught=not report.value_exact,
            by=by,
            named=_named(fault, words),
            words=words[0] if words else "",
            checks=tuple(usual_checks(conversion.tensors, tensors)),
            logits="no model" if good is None else _logits(good, tensors),
        )
        target.unlink()


def said(report: Verification, fault: Fault) -> tuple[list[str], str]:
    """What the report says, what names the fault first; and by what it was caught."""
    failed = [row for row in report.claims if row.verdict not in VALUE_EXACT]
    words = [f"`{row.target}`: {_text(row)}" for row in failed]
    words += [problem.message for problem in report.problems]
    words.sort(key=lambda text: not all(re.search(group, text) for group in fault.says))
    kinds = {problem.kind for problem in report.problems}
    by = "bits" if failed else "type" if kinds & {"type", "shape"} else "coverage"
    return words, "tie" if not failed and "tie" in kinds else by


def _text(row: ClaimRow) -> str:
    if row.diagnosis is None:
        return row.why
    more = [name for name in row.diagnosis.suspects if name not in row.diagnosis.text]
    return row.diagnosis.text + (f" ({', '.join(more)})" if more else "")


def _named(fault: Fault, words: list[str]) -> str:
    if not fault.says:
        return "-"
    named = all(any(re.search(group, text) for text in words) for group in fault.says)
    return "yes" if named else "NO"


# --- the usual checks


def usual_checks(good: Tensors, bad: Tensors) -> Iterator[bool]:
    """Whether each of `CHECKS` sees a difference, over the tensors that have one name and shape."""
    common = [name for name in good if name in bad and good[name].shape == bad[name].shape]
    pairs = [(_numbers(good[name]), _numbers(bad[name])) for name in common]
    same_list = len(common) == len(good) == len(bad)
    new = any(np.isfinite(a).all() and not np.isfinite(b).all() for a, b in pairs)
    yield not same_list or new
    yield any(_sum(a) != _sum(b) for a, b in pairs)
    for tolerance in (0.1, 1e-2, 1e-5):
        yield any(not np.allclose(b, a, rtol=tolerance, atol=tolerance, equal_nan=True)
                  for a, b in pairs)  # fmt: skip
    yield any(not np.array_equal(a, b, equal_nan=True) for a, b in pairs)


def _numbers(a: Array) -> Array:
    with np.errstate(invalid="ignore"):  # of signalling NaNs
        exact: Array = a.astype(np.float64)
    return exact


def _sum(a: Array) -> str:
    """The exact sum of what is finite, to the bit, and what is not."""
    finite = np.isfinite(a)
    return f"{math.fsum(a[finite].reshape(-1))} {np.isnan(a).sum()} {np.isinf(a).sum()}"


def _logits(good: Array, tensors: Tensors) -> str:
    """The largest divergence of the next token's distribution, and how often the first agrees."""
    try:
        found = toy.logits(tensors)
    except (KeyError, RuntimeError, ValueError):
        return "does not load"
    if not np.isfinite(found).all():
        return "not finite"
    p, q = (a - np.log(np.exp(a).sum(-1, keepdims=True)) for a in (good, found))
    divergence = float((np.exp(p) * (p - q)).sum(-1).max())
    agree = float((good.argmax(-1) == found.argmax(-1)).mean())
    return f"{divergence:.0e} / {agree:.2f}" if divergence > 0 else f"0 / {agree:.2f}"
