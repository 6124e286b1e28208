"""`lockstep verify digest`: a checkpoint by content, to be compared without moving data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from lockstep.artifacts import parse_json, read_bytes
from lockstep.artifacts.printable import printable
from lockstep.cli.verb import Outcome, Verb
from lockstep.cli.verify_options import FILE, FORCE, JOBS, MAX_MEMORY, format_option
from lockstep.cli.verify_outputs import claim_outputs
from lockstep.cli.verify_progress import Progress
from lockstep.cli.verify_text import leaves, shortened
from lockstep.verify.api import digest_checkpoint
from lockstep.verify.engine.examine import Options
from lockstep.verify.listing import DigestChanges, Digests, compare_digests


@click.command("digest", cls=Verb)
@click.argument("checkpoint", type=FILE)
@click.option("--check", type=FILE, metavar="FILE",
              help="Compare with digests that --out wrote before.")  # fmt: skip
@click.option("--out", type=FILE, help="Write the digests as JSON.")
@MAX_MEMORY
@JOBS
@format_option("--format", "the checkpoint")
@FORCE
def command(
    checkpoint: Path, check: Path | None, out: Path | None, max_memory_bytes: int, jobs: int,
    format: str | None, force: bool,
) -> Outcome:  # fmt: skip
    """Digest every leaf as a logical array with its type and shape, and all of them to one root.

    Equal arrays have equal digests in every format. Exit code 1 if --check finds a difference.
    """
    inputs = [checkpoint] if check is None else [checkpoint, check]
    claim_outputs([out], inputs, force=force)
    earlier = None if check is None else _load(check)
    with Progress() as progress:
        options = Options(max_memory_bytes=max_memory_bytes, jobs=jobs, progress=progress)
        found = digest_checkpoint(checkpoint, format, options)
    if out is not None:
        found.save(out.parent, out.name)
    if earlier is None:
        return Outcome(found.document(), "\n".join(_lines(found)))
    changes = _compare(earlier, found)
    document = {
        **found.document(),
        "check": {"file": str(check), "same": changes.is_same, **_names(changes)},
    }
    return Outcome(document, "\n".join(_said(changes, found)), 0 if changes.is_same else 1)


def _load(path: Path) -> Digests:
    return Digests.from_document(parse_json(read_bytes(path), str(path)), str(path))


def _compare(earlier: Digests, later: Digests) -> DigestChanges:
    old, new = ({line.name: line for line in each.leaves} for each in (earlier, later))
    return compare_digests(old, new)


def _names(changes: DigestChanges) -> dict[str, list[str]]:
    kinds = ("changed", "retyped", "missing", "extra")
    return {kind: list(getattr(changes, kind)) for kind in kinds}


def _lines(found: Digests) -> Iterator[str]:
    for line in found.leaves:
        shape = f"[{', '.join(map(str, line.shape))}]"
        yield f"{line.digest}  {printable(line.name)}  {line.element} {shape}"
    yield f"{found.root}  root of {leaves(len(found.leaves))} ({found.algorithm})"


def _said(changes: DigestChanges, found: Digests) -> Iterator[str]:
    groups = (
        ("content differs", changes.changed),
        ("type or shape differs", changes.retyped),
        ("missing, was there before", changes.missing),
        ("new, was not there before", changes.extra),
    )
    for what, names in groups:
        yield from shortened(f"{what}: {printable(name)}" for name in names)
    same = leaves(len(changes.equal))
    if changes.is_same:
        yield f"the same: {same}, root {found.root}"
    else:
        counts = ", ".join(f"{len(names)} {what.split(',')[0]}" for what, names in groups if names)
        yield f"not the same: {counts or 'nothing to compare'}; {same} equal"
