"""Which angles rope turns by: the base, and how a model was stretched to a longer context."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lockstep.errors import UsageError
from lockstep.ir.op import Attr


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearScaling:
    """Every pair turns slower by the same factor: positions are squeezed together."""

    factor: float

    def __post_init__(self) -> None:
        _expect_finite(self, factor=self.factor)

    def attrs(self, theta: float, rotary: int) -> dict[str, Attr]:
        """The attributes of `rope_table` that it sets."""
        return {"factor": self.factor}


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama3Scaling:
    """How Llama 3.1 slows down the low frequencies of rope.

    Source: transformers modeling_rope_utils, `rope_type: llama3`.
    """

    factor: float
    low: float
    high: float
    original: int  # context of the first training

    def __post_init__(self) -> None:
        _expect_finite(self, factor=self.factor, original=self.original)
        if not (0 < self.low < self.high and math.isfinite(self.high)):
            raise UsageError(f"config scaling: expected finite 0 < low < high, got {self}")

    def attrs(self, theta: float, rotary: int) -> dict[str, Attr]:
        """The attributes of `rope_table` that it sets."""
        original = float(self.original)
        return {"factor": self.factor, "begin": self.low, "end": self.high, "original": original}


@dataclass(frozen=True, slots=True, kw_only=True)
class YarnScaling:
    """Yarn: fast pairs stay, slow ones are squeezed, and the scores grow by `magnitude` squared.

    Source: arXiv:2309.00071; transformers modeling_rope_utils, `rope_type: yarn`.
    """

    factor: float
    original: int  # context of the first training
    magnitude: float
    beta_fast: float = 32.0  # pairs that turn more often within `original` stay as they are
    beta_slow: float = 1.0  # pairs that turn less often are squeezed in full
    truncate: bool = True  # whether these borders are widened to whole pairs

    def __post_init__(self) -> None:
        _expect_finite(
            self,
            factor=self.factor,
            original=self.original,
            magnitude=self.magnitude,
            beta_fast=self.beta_fast,
            beta_slow=self.beta_slow,
        )

    def attrs(self, theta: float, rotary: int) -> dict[str, Attr]:
        """The attributes of `rope_table` that it sets."""

        def pair_that_turns(times: float) -> float:
            turns = math.log(self.original / (times * 2 * math.pi))
            return rotary * turns / (2 * math.log(theta))

        low, high = pair_that_turns(self.beta_fast), pair_that_turns(self.beta_slow)
        if self.truncate:
            low, high = float(math.floor(low)), float(math.ceil(high))
        low, high = max(low, 0.0), min(high, float(rotary - 1))
        if low == high:
            high += 0.001  # as everybody does, so that nothing is divided by zero
        return {
            "factor": self.factor,
            "by_pair": True,
            "begin": high,
            "end": low,
            "magnitude": self.magnitude,
        }


Scaling = LinearScaling | Llama3Scaling | YarnScaling


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """One table of angles: the base, how many elements of a head turn, and the stretch."""

    theta: float
    rotary: int
    scaling: Scaling | None = None

    def __post_init__(self) -> None:
        if isinstance(self.scaling, YarnScaling) and self.theta <= 1.0:
            raise UsageError(f"config theta: expected more than 1 for yarn, got {self.theta}")

    def attrs(self) -> dict[str, Attr]:
        """The attributes of `rope_table` but for the context."""
        plain: dict[str, Attr] = {
            "theta": self.theta,
            "rotary": self.rotary,
            "factor": 1.0,
            "by_pair": False,
            "begin": 0.0,
            "end": 1.0,
            "original": 0.0,
            "magnitude": 1.0,
        }
        return plain | (self.scaling.attrs(self.theta, self.rotary) if self.scaling else {})


def yarn_magnitude(factor: float, mscale: float = 1.0, mscale_all_dim: float = 0.0) -> float:
    """The magnitude that yarn takes where the config gives none.

    Source: transformers modeling_rope_utils, `get_mscale`.
    """

    def scale(by: float) -> float:
        return 1.0 if factor <= 1.0 else 0.1 * by * math.log(factor) + 1.0

    return scale(mscale) / scale(mscale_all_dim) if mscale and mscale_all_dim else scale(1.0)


# Far above every model that exists.
_MOST = 1 << 24


def _expect_finite(scaling: object, **numbers: float) -> None:
    """Insists on numbers that rope can be computed with."""
    for name, number in numbers.items():
        if not 0 < number <= _MOST:
            raise UsageError(
                f"config scaling: expected {name} above 0 and at most {_MOST}, got {scaling}"
            )
