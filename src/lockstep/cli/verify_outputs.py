"""The files that a verification is written to; whether they can be is found out first."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from lockstep.artifacts.files import explained, make_directory, regular_or_missing
from lockstep.artifacts.verification import Verification
from lockstep.cli.options import refuse_existing
from lockstep.cli.verb import Outcome
from lockstep.cli.verify_options import FILE, FORCE
from lockstep.cli.verify_text import verification_text
from lockstep.errors import EnvironmentLacks, UsageError

F = TypeVar("F", bound=Callable[..., Outcome])


@dataclass(frozen=True, slots=True)
class Outputs:
    """Where a verification is written to, as JSON, as a page, and as JUnit XML."""

    out: Path | None
    html: Path | None
    junit: Path | None
    force: bool

    @property
    def paths(self) -> tuple[Path | None, ...]:
        """All of them."""
        return self.out, self.html, self.junit

    def write(self, record: Verification, exit_code: int) -> Outcome:
        """Writes what was asked for, whatever the verdict is.

        Raises: EnvironmentLacks if the disk refuses; what was found is on stderr then.
        """
        text = verification_text(record)
        try:
            written = self._written(record)
        except EnvironmentLacks:
            click.echo(text, err=True)
            raise
        lines = [*(f"wrote {path}" for path in written), text]
        return Outcome(record.document(), "\n".join(lines), exit_code)

    def _written(self, record: Verification) -> list[Path]:
        written = []
        if self.out is not None:
            written.append(record.save(self.out.parent, self.out.name))
        if self.html is not None:
            # imported here, when the work is done: its packages are not to count against the budget
            from lockstep.report.verification import write_verification_page

            written.append(write_verification_page(record, self.html))
        if self.junit is not None:
            from lockstep.report.junit import write_junit

            written.append(write_junit(record, self.junit))
        return written


def output_options(callback: F) -> F:
    """Passes `outputs: Outputs`."""

    @click.option("--out", type=FILE, help="Write the record as JSON, whatever the verdict.")
    @click.option("--html", type=FILE, help="Write it as one page that opens without network.")
    @click.option("--junit", type=FILE, help="Write it as JUnit XML, one test for each claim.")
    @FORCE
    @wraps(callback)
    def with_outputs(
        out: Path | None, html: Path | None, junit: Path | None, force: bool, **rest: Any
    ) -> Outcome:
        return callback(outputs=Outputs(out, html, junit, force), **rest)

    return with_outputs  # type: ignore[return-value]  # click changes the signature


def claim_outputs(
    paths: Iterable[Path | None],
    inputs: Iterable[Path],
    *,
    force: bool,
    journal: Path | None = None,
) -> None:
    """Insists, before anything is read, that each output can be written and is no input.

    A journal may be there already: it is gone on with.
    Raises: UsageError naming the one that is there, or that is given twice, or is an input;
    EnvironmentLacks if its directory cannot be written.
    """
    outputs = [path for path in paths if path is not None]
    journals = [] if journal is None else [journal]
    taken = {Path(os.path.realpath(path)) for path in inputs}  # which does not mind rings of links
    for path in (*outputs, *journals):
        place = Path(os.path.realpath(path))
        if place in taken or any(place.is_relative_to(other) for other in taken if other.is_dir()):
            raise UsageError(
                f"{path}: expected an output apart from the inputs and the other outputs, got "
                "one of them, or a file inside of one",
                hint="choose another file for this output",
            )
        taken.add(place)
    refuse_existing(outputs, force=force)
    for path in (*outputs, *journals):
        _probe(path)


def _probe(path: Path) -> None:
    """Finds out now, not after hours of reading, that a directory cannot be written."""
    make_directory(path.parent)
    if path.is_dir():
        raise UsageError(
            f"{path}: expected a file, got a directory", hint="name a file inside of it"
        )
    regular_or_missing(path)
    # as long as the name of the temporary file that will be renamed, or longer
    probe = path.with_name(f".{path.name}.can-this-be-written.tmp")
    with explained(path):
        probe.touch()
        probe.unlink()
