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

MODELS_FLOOR = Bound(
    1e-6, "what float32 loses where a form computes (1 + w, -exp), with a margin of ten"
)
QUIET_ROW = Bound(
    0.01,
    "of the values of a weight: a row that is quieter meets the last bits of a block's F16 scale",
)
METADATA_FLOAT = Bound(
    2 * 2.0**-23, "an ulp of float32 on each side, through which a setting may have gone"
)
_BLOCK = (
    "root mean square over that of the values, of a block that reaches six times its deviation, "
    "twice what a normal one of 32 does, in 2^bits steps: 12 / 2^bits a step, over the root of 12"
)
_BITS = {"Q8_0": 8, "Q6_K": 6, "Q5_0": 5, "Q5_1": 5, "Q5_K": 5, "Q4_0": 4, "Q4_1": 4, "Q4_K": 4,
         "MXFP4": 3, "Q3_K": 3, "Q2_K": 2}  # fmt: skip
TYPE_LOST = {
    "F32": Bound(0.0, "the numbers themselves"),
    "F16": Bound(2.0**-10, "an ulp of 11 significant bits"),
    "BF16": Bound(2.0**-7, "an ulp of 8 significant bits"),
    **{name: Bound(12.0 / 2**bits / 12**0.5, _BLOCK) for name, bits in _BITS.items()},
}
BLOCK_FACTOR = Bound(
    3**0.5,
    "of what a type may lose of a row: each value of a block half a step off, the most there is; "
    "a row averages over blocks, and the root of a twelfth of a step is the average",
)

FAULTS_NAMED = Bound(0.95, "the share of planted faults whose node must be named")
