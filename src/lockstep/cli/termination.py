"""SIGTERM ends a verb as Ctrl-C does: what it holds, such as temporary files, is put away first."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_ONE_WISH_S = 1.0


class Terminated(BaseException):
    """SIGTERM came, and nothing more is wanted."""


@contextmanager
def raising_on_sigterm() -> Iterator[None]:
    """Raises `Terminated` where the program stands, unless somebody else handles the signal."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    last = -math.inf

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal last
        # `timeout` sends it twice, and the second one must not end the clearing.
        if time.monotonic() - last > _ONE_WISH_S:
            last = time.monotonic()
            raise Terminated

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
