"""`lockstep verify suggest`: a claim file proposed from two checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from lockstep.artifacts.files import atomic_write_text
from lockstep.artifacts.printable import printable
from lockstep.cli.verb import Outcome, Verb
from lockstep.cli.verify_options import FILE, FORCE, MAX_MEMORY, format_option
from lockstep.cli.verify_outputs import claim_outputs
from lockstep.cli.verify_progress import Progress
from lockstep.cli.verify_text import leaves, shortened
from lockstep.verify.api import Pair
from lockstep.verify.engine.examine import Options
from lockstep.verify.suggestion.suggest import Suggestion, suggest


@click.command("suggest", cls=Verb)
@click.argument("source", type=FILE)
@click.argument("target", type=FILE)
@click.option("--shapes-only", is_flag=True, help="Read no data: go by names, shapes and types.")
@click.option("--out", type=FILE, help="Write the claim file there.  [default: to stdout]")
@MAX_MEMORY
@format_option("--source-format", "the source")
@format_option("--target-format", "the target")
@click.option("--allow-same", is_flag=True, help="Let both checkpoints be the same files.")
@FORCE
def command(
    source: Path, target: Path, shapes_only: bool, out: Path | None, max_memory_bytes: int,
    source_format: str | None, target_format: str | None, allow_same: bool, force: bool,
) -> Outcome:  # fmt: skip
    """Propose a claim file from the shapes and the contents of two checkpoints.

    Both are read once for fingerprints, and what matches is compared in full. What contents do not
    show, and what nobody decided, stands in comments. Exit code 1 if a leaf of the target is not
    explained.
    """
    claim_outputs([out], [source, target], force=force)
    pair = Pair(source=source, target=target, source_format=source_format,
                target_format=target_format, allow_same=allow_same)  # fmt: skip
    with Progress() as progress:
        options = Options(max_memory_bytes=max_memory_bytes, progress=progress)
        found = suggest(*pair.open(), options, shapes_only=shapes_only)
    code = 1 if found.unexplained["target"] or not found.n_claims else 0
    lines = list(_summary(found))
    if out is None:
        for line in lines:
            click.echo(line, err=True)
        return Outcome(found.document(), found.toml.rstrip("\n"), code)
    atomic_write_text(out, found.toml)
    return Outcome(found.document(), "\n".join([f"wrote {out}", *lines]), code)


def _summary(found: Suggestion) -> Iterator[str]:
    rules = f"{found.n_rules} rule{'s' * (found.n_rules != 1)}"
    yield f"{rules} for {leaves(found.n_claims)} of the target"
    if found.unshown:
        why = "shapes" if found.shapes_only else "contents"
        yield f"not shown by {why}, chosen by name: {leaves(len(found.unshown))}"
    if found.breaks:
        yield "breaking the pattern of their neighbours:"
        yield from shortened(f"  {printable(name)}" for name in found.breaks)
    for side in ("target", "source"):
        names = found.unexplained[side]
        if names:
            yield f"unexplained in the {side}: {leaves(len(names))}"
            yield from shortened(f"  {printable(name)}" for name in names)
    if not found.unexplained["target"] and not found.unexplained["source"]:
        yield "every element of both is explained"
