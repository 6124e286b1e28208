"""A worker of a benchmark: one implementation in a process of its own, seen from outside."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CLOSE_SECONDS = 10


class Worker:
    """It only works while it is asked to; after a failure `problem` says why it answers no more."""

    def __init__(self, name: str, python: str, script: str, *arguments: str) -> None:
        self.name = name
        pipe = subprocess.PIPE
        # A file, because a pipe that nobody reads would fill and block.
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # lives as long as the process
        command = [python, str(HERE / script), *arguments]
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=self.log, text=True
        )
        self.problem = ""
        self.peak_mib = 0.0

    def ask(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """What it answers; None when it has failed."""
        if self.problem:
            return None
        assert self.process.stdin
        assert self.process.stdout
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
            while line and '"peak_mib"' not in line:  # what libraries print, and "ready"
                line = self.process.stdout.readline()
            answer: dict[str, Any] = json.loads(line)
        except (BrokenPipeError, json.JSONDecodeError):
            self.process.wait(timeout=CLOSE_SECONDS)
            self.log.seek(0)
            lines = self.log.read().strip().splitlines()
            self.problem = lines[-1] if lines else f"exit code {self.process.returncode}"
            return None
        self.peak_mib = answer["peak_mib"]
        return answer

    def close(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.communicate()
        self.log.close()
