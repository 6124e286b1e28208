"""`lockstep verify ls`: the leaves of a checkpoint, without reading their data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from lockstep.artifacts.printable import printable, size
from lockstep.cli.verb import Outcome, Verb
from lockstep.cli.verify_options import FILE, format_option
from lockstep.cli.verify_text import leaves
from lockstep.formats.open_store import open_store
from lockstep.verify.listing import LeafLine, Listing, list_leaves


@click.command("ls", cls=Verb)
@click.argument("checkpoint", type=FILE)
@format_option("--format", "the checkpoint")
def command(checkpoint: Path, format: str | None) -> Outcome:
    """List the leaves of a checkpoint: name, type, shape, size, and where the bytes lie."""
    found = list_leaves(open_store(checkpoint, format))
    return Outcome(found.document(), "\n".join(_lines(found)))


def _lines(found: Listing) -> Iterator[str]:
    rows = [_cells(line) for line in found.leaves]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)] if rows else []
    for row in rows:
        yield "  ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)).rstrip()
    yield from (f"note: {printable(note)}" for note in found.notes)
    files = f"{len(found.files)} file{'s' * (len(found.files) != 1)}"
    yield f"{leaves(found.n_leaves)}, {size(found.n_bytes)}, {found.format}, {files}"


def _cells(line: LeafLine) -> tuple[str, ...]:
    shape = f"[{', '.join(map(str, line.shape))}]"
    more = f"  shares {line.shares}" if line.shares else ""
    place = f"= {line.value}" if line.value else line.place + more
    return printable(line.name), line.element, shape, size(line.n_bytes), printable(place)
