"""An answer on a terminal or in a pipe, piece by piece; thinking dimmed, tagged or left out."""

from __future__ import annotations

import os
import re
from typing import Literal, TextIO

from lockstep.artifacts.printable import printable
from lockstep.engine.streaming import THINK_BEGIN, THINK_END

Think = Literal["show", "hide", "off"]

_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
# What steers a terminal or turns the direction of writing; joiners inside characters stay.
_STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]+")


class Display:
    """Writes pieces as they come, and what goes between thinking and answer."""

    def __init__(self, stream: TextIO, *, shows_thinking: bool) -> None:
        self._stream = stream
        self._shows_thinking = shows_thinking
        self._is_terminal = stream.isatty()
        self._dims = self._is_terminal and not os.environ.get("NO_COLOR")
        self._thinks = False
        self._ends_line = True

    def show(self, thinks: bool, text: str) -> None:
        """Writes one piece."""
        if thinks and not self._shows_thinking:
            return
        if thinks != self._thinks:
            self._turn(thinks)
        shown = _STEERING.sub(lambda found: printable(found[0]), text)
        self._write(shown if self._is_terminal else text)

    def end(self) -> None:
        """Ends the answer with its line."""
        if self._thinks:
            self._turn(False)
        if not self._ends_line:
            self._write("\n")

    def _turn(self, thinks: bool) -> None:
        """Between thinking and the answer."""
        self._thinks = thinks
        if thinks:
            self._write(_DIM if self._dims else f"{THINK_BEGIN}\n")
            return
        ended = "" if self._ends_line else "\n"
        self._write(f"{ended}{_PLAIN if self._dims else THINK_END}\n")

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
        visible = text.replace(_DIM, "").replace(_PLAIN, "")
        self._ends_line = visible.endswith("\n") if visible else self._ends_line
