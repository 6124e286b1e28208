"""What an inference program is built for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lockstep.errors import UsageError

CacheKind = Literal["f16", "f32", "q8_0"]


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceShape:
    """How many sequences a program holds, how long they get, and how much it reads in a pass.

    `slots` sequences are held at once, each of up to `context` tokens. A pass reads up to `rows`
    tokens, of any of them, and gives logits after up to `outs` of these. `cache` is how keys and
    values are kept.
    """

    context: int
    rows: int
    slots: int = 1
    outs: int = 1
    cache: CacheKind = "f32"

    def __post_init__(self) -> None:
        for name, value, most in (
            ("context", self.context, None),
            ("slots", self.slots, 1 << 12),
            ("rows", self.rows, self.slots * self.context),
            ("outs", self.outs, self.rows),
        ):
            if value < 1 or (most is not None and value > most):
                limit = f"1 to {most}" if most is not None else "1 or more"
                raise UsageError(f"{name}: expected {limit}, got {value}")
