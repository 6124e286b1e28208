"""How far a verification is: bytes and the time left, on stderr."""

from __future__ import annotations

import sys
import time

from lockstep.artifacts.printable import size

_CLEAR = "\r\x1b[K"
_SECONDS_ON_A_TERMINAL = 0.5
_SECONDS_IN_A_LOG = 10.0


class Progress:
    """One line that is written over on a terminal, a line now and then in a log.

    A run that is over soon says nothing.
    """

    def __init__(self) -> None:
        self._is_terminal = sys.stderr is not None and sys.stderr.isatty()
        self._pause = _SECONDS_ON_A_TERMINAL if self._is_terminal else _SECONDS_IN_A_LOG
        self._began = self._said = time.monotonic()
        self._is_open = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        """Clears the line that was written over."""
        if self._is_open:
            print(_CLEAR, end="", file=sys.stderr, flush=True)
            self._is_open = False

    def __call__(self, n_done: int, n_total: int) -> None:
        """Says how many bytes are done, unless it was said just now."""
        now = time.monotonic()
        if n_done >= n_total or now - self._said < self._pause:
            return
        self._said = now
        text = progress_text(n_done, n_total, now - self._began)
        self._is_open = self._is_terminal
        ends = (_CLEAR, "") if self._is_terminal else ("", "\n")
        print(f"{ends[0]}{text}", end=ends[1], file=sys.stderr, flush=True)


def progress_text(n_done: int, n_total: int, seconds: float) -> str:
    """`1.5 GiB of 8 GiB, 512 MiB/s, 13 s left`."""
    parts = [f"{size(n_done)} of {size(n_total)}"]
    if n_done and seconds > 0:
        parts.append(f"{size(n_done / seconds)}/s")
        parts.append(f"{_duration((n_total - n_done) * seconds / n_done)} left")
    return ", ".join(parts)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
