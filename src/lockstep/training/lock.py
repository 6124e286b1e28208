"""One training at a time in a run."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager

from lockstep.artifacts import RunDir
from lockstep.artifacts.files import explained
from lockstep.errors import UsageError

LOCK_FILE = ".train.lock"


@contextmanager
def sole_training(run: RunDir) -> Iterator[None]:
    """Keeps other trainings out of the run; the system lets go of it however this process ends.

    Raises: UsageError if another training is at work; EnvironmentLacks if the run is read-only.
    """
    path = run.path / LOCK_FILE
    with explained(path):
        file = path.open("wb")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"run {run.name}: expected to be its only training, got another one at work",
                hint="wait until it ends, or stop it",
            ) from None
        yield
