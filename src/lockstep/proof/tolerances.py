"""The limits of the gates; each carries its reason."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bound:
    """A limit and why it is what it is."""

    value: float
    why: str


_RUNBOOK = (
    "the runbook's own limit; two honest float32 trainings of this size part by 2e-5 in loss and "
    "4e-5 in parameters, measured by moving every start weight by one ulp"
)
CANARY_LOSS_MAX = Bound(1e-4, _RUNBOOK)
CANARY_LOSS_MEAN = Bound(5e-5, _RUNBOOK)
CANARY_PARAM_MAX = Bound(1e-4, _RUNBOOK)

D1_FIRST_LOSS = Bound(1e-5, "the runbook's limit for the loss of a first step")
D1_LOGITS = Bound(2e-4, "the runbook's limit for the logits of a first step")
D1_LOSS_MAX = CANARY_LOSS_MAX
D1_PARAM_MAX = CANARY_PARAM_MAX

COMPARE_FACTOR = Bound(
    4.0,
    "error against float64, as a multiple of what float32 itself makes of the same values "
    "(transformers' error, or the spread under one ulp): two float32 programs that sum in "
    "different orders differ by small factors, a fault by orders of magnitude",
)
COMPARE_FLOOR = Bound(
    2e-6,
    "sixteen float32 roundings: below this, a multiple of an error that happens to be tiny "
    "would decide by luck",
)

FAULTS_NAMED = Bound(0.95, "the share of planted faults whose node must be named")
