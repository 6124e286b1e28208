"""Every error that a user can cause.

LockstepError            one base class: where, what was expected and found, what to do next
├── GateError        1   a gate failed, or values differ
├── UsageError       2   a flag, a configuration or a claim is wrong
├── EnvironmentLacks 3   a compiler, a device, an extra or disk space is missing
├── InputError       4   a file is unreadable or corrupt
├── BudgetError      5   refused by a budget of memory or tokens
└── InexactError     6   only inexact equality was shown
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar


class LockstepError(Exception):
    """An error with a hint for the person at the terminal and the exit code of the command."""

    exit_code: ClassVar[int] = 70

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


def nearest(word: str, known: Iterable[str]) -> str:
    """The beginning of a hint: `did you mean BF16? `, or nothing if no known word is near."""
    by_lower = {each.lower(): each for each in known}
    found = difflib.get_close_matches(word[:80].lower(), by_lower, n=1, cutoff=0.6)
    return f"did you mean {by_lower[found[0]]}? " if found else ""


class GateError(LockstepError):
    """A gate failed, or values differ."""

    exit_code = 1


class UsageError(LockstepError):
    """A flag, a configuration or a claim is wrong."""

    exit_code = 2


class EnvironmentLacks(LockstepError):
    """The environment lacks something: a compiler, a device, an extra, space on a disk."""

    exit_code = 3


class InputError(LockstepError):
    """An input cannot be read, or is corrupt."""

    exit_code = 4


class BudgetError(LockstepError):
    """Refused by a budget of memory or tokens."""

    exit_code = 5


class InexactError(LockstepError):
    """Only inexact equality was shown where exact equality was asked for."""

    exit_code = 6
