"""Runs the user's own converter on one checkpoint, in a folder of its own, for a limited time."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from lockstep.artifacts.printable import printable
from lockstep.errors import EnvironmentLacks, InputError, UsageError

SOURCE, TARGET = "{source}", "{target}"
_SHOWN = 20  # last lines of the output
_MOST_SHOWN = 4000  # signs of it


class TooSlow(InputError):
    """The converter did not end in its time."""


@dataclass(frozen=True, slots=True)
class Converter:
    """A command with `{source}` and `{target}` in it.

    Without `shell` it is split into words as a shell would, and nothing in it is expanded.
    """

    command: str
    timeout_s: float = 600.0
    shell: bool = False

    def __post_init__(self) -> None:
        for place in (SOURCE, TARGET):
            if place not in self.command:
                raise UsageError(
                    f"--run: expected a command with {SOURCE} and {TARGET}, got {self.command!r}",
                    hint=f"write {place} where the converter takes that path",
                )
        self._words("", "")

    def _words(self, source: str, target: str) -> list[str]:
        if self.shell:
            text = self.command.replace(SOURCE, shlex.quote(source))
            return ["/bin/sh", "-c", text.replace(TARGET, shlex.quote(target))]
        try:
            words = shlex.split(self.command)
        except ValueError as error:
            raise UsageError(
                f"--run: expected a command, got {self.command!r}: {error}",
                hint="close every quotation mark",
            ) from error
        return [word.replace(SOURCE, source).replace(TARGET, target) for word in words]

    def convert(self, source: Path, folder: Path) -> Path:
        """Runs the command and gives what it wrote into the folder.

        Raises: InputError if it fails, takes too long or writes nothing; EnvironmentLacks if it is
        not there.
        """
        made = folder / "made"
        made.mkdir()
        log = folder / "output.txt"
        target = made / "target"
        self._run(self._words(str(source), str(target)), folder, log)
        if target.exists():
            return target
        found = sorted(made.iterdir())
        if len(found) != 1:
            listed = ", ".join(path.name for path in found)[:200] or "nothing"
            raise _failed(f"expected one file or directory at {TARGET}, got {listed}", log)
        return found[0]

    def _run(self, words: list[str], folder: Path, log: Path) -> None:
        scratch = folder / "tmp"
        scratch.mkdir()
        with log.open("wb") as output:
            try:
                process = subprocess.Popen(
                    words, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                    env={**os.environ, "TMPDIR": str(scratch)}, start_new_session=True,
                )  # fmt: skip
            except (OSError, ValueError) as error:
                raise EnvironmentLacks(
                    f"--run: expected a program that can be started, got {words[0]!r:.200}: "
                    f"{getattr(error, 'strerror', None) or error}",
                    hint="check the name of the program, and that it is installed",
                ) from error
            try:
                code = process.wait(self.timeout_s)
            except subprocess.TimeoutExpired as error:
                text = f"expected it to end within {self.timeout_s:g} s, got no end"
                raise TooSlow(_text(text, log), hint="allow more with --timeout") from error
            finally:
                _end(process)
        if code:
            got = f"signal {-code}" if code < 0 else f"exit status {code}"
            raise _failed(f"expected exit status 0, got {got}", log)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the converter and whatever it started that is still there."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _failed(what: str, log: Path) -> InputError:
    return InputError(_text(what, log), hint="run the command by hand on the template")


def _text(what: str, log: Path) -> str:
    """What went wrong, and the end of what the converter printed."""
    with log.open(encoding="utf-8", errors="replace") as file:
        lines = [printable(line.rstrip("\n")) for line in deque(file, _SHOWN)]
    text = "\n".join(f"    {line}" for line in lines)[-_MOST_SHOWN:]
    shown = f"; the end of its output:\n{text}" if text.strip() else "; it printed nothing"
    return f"converter: {what}{shown}"
