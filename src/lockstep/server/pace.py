"""How much of waiting prompts goes into a pass beside running answers."""

from __future__ import annotations

TARGET_S = 0.1  # what a pass may take when answers are being generated
LEAST = 8


class Pace:
    """Rows that keep a pass near its target, learned from those before.

    The clock decides only how prompts are cut, and no bit of an answer depends on that.
    """

    def __init__(self, most: int, target_s: float = TARGET_S) -> None:
        self._most, self._target_s = most, target_s
        self.rows = min(most, 4 * LEAST)

    def saw(self, n_prompt_rows: int, seconds: float) -> None:
        """Takes the time of a pass that had prompt rows beside answers."""
        if seconds > self._target_s:
            self.rows = max(min(LEAST, self._most), min(self.rows, n_prompt_rows) // 2)
        elif n_prompt_rows >= self.rows and seconds < self._target_s / 2:
            self.rows = min(self._most, 2 * self.rows)
