"""Follows docs/verify.md: writes its files, runs its commands, puts what they print into the page.

A fence ```LANGUAGE NAME is a file; one with the name of a file that is there goes on with it. In a
fence ```console each line `$ COMMAND` is run, and what stands below it is what it printed. A
command goes on in a line `> ...` after a backslash; a fence ```console slow takes its time.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

PAGE = Path(__file__).parent / "verify.md"
FENCE = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error", "COLUMNS": "100"}
_SCRUBBED = (
    (re.compile(r"^(cost: read [^ ]+ [KMG]iB) .*$", re.MULTILINE), r"\1 ..."),
    (re.compile(r"predicted peak [0-9.]+ MiB"), "predicted peak ..."),
    (re.compile(r"^(error: --max-memory: expected at least) .*$", re.MULTILINE), r"\1 ..."),
    (re.compile(r"--max-memory \d+MiB or more"), "--max-memory ... or more"),
    (re.compile(r"\bin [0-9.]+ s\b"), "in SECONDS"),
    (re.compile(r"\b[0-9a-f]{64}\b"), "DIGEST"),
    (re.compile(r"\b\d+\.\d+s\b"), "SECONDS"),
    # Drawn weights, which another processor may draw otherwise in their last bits.
    (re.compile(r"0x[0-9a-f]+ \([^)]*\)"), "VALUE"),
    (re.compile(r"[0-9,]+ of ([0-9,]+ elements differ):.*$", re.MULTILINE), r"some of \1"),
)  # fmt: skip


def follow(page: str, folder: Path, *, slow: bool = True) -> str:
    """The page with what its commands print now, one after the other, in this folder."""

    def followed(fence: re.Match[str]) -> str:
        language, name, body = fence.groups()
        if language == "console":
            return fence[0] if name == "slow" and not slow else _console(name, body, folder)
        if name:
            with (folder / name).open("a", encoding="utf-8") as file:
                file.write(body)
        return fence[0]

    return FENCE.sub(followed, page)


def _console(name: str | None, body: str, folder: Path) -> str:
    shown = [line for line in body.splitlines() if line.startswith(("$ ", "> "))]
    text, command = f"```console{f' {name}' if name else ''}\n", ""
    for line in shown:
        text += f"{line}\n"
        command += f"{line[2:]}\n"
        if not line.endswith("\\"):
            text += _ran(command, folder)
            command = ""
    return f"{text}```"


def scrubbed(page: str) -> str:
    """The page without what differs from run to run and from machine to machine."""
    for pattern, replacement in _SCRUBBED:
        page = pattern.sub(replacement, page)
    return page


def _ran(command: str, folder: Path) -> str:
    """The command with its output, and with its exit code where that is not 0."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder, env={**kept, **QUIET, "PATH": path}, check=False, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    code = f"(exit code {done.returncode})\n" if done.returncode else ""
    return f"{done.stdout}{code}"


def main() -> None:
    """Writes the page again, with what its commands print now."""
    with tempfile.TemporaryDirectory() as folder:
        page = follow(PAGE.read_text(encoding="utf-8"), Path(folder))
    PAGE.write_text(page, encoding="utf-8")
    print("wrote docs/verify.md")


if __name__ == "__main__":
    main()
