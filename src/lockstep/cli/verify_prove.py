"""`lockstep verify SRC DST --claims FILE`: the proof, and the re-check of a report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click

from lockstep.artifacts.printable import printable
from lockstep.cli.verb import Outcome, Verb
from lockstep.cli.verify_options import FILE, JOBS, MAX_MEMORY, format_option
from lockstep.cli.verify_outputs import Outputs, claim_outputs, output_options
from lockstep.cli.verify_progress import Progress
from lockstep.cli.verify_text import leaves, shortened
from lockstep.errors import UsageError
from lockstep.verify.against import Against, hold_against
from lockstep.verify.api import Pair, check_pair, exit_code
from lockstep.verify.engine.examine import Options

_HINT = "see `lockstep verify prove --help`"


@click.command("prove", cls=Verb)
@click.argument("source", type=FILE)
@click.argument("target", type=FILE, required=False)
@click.option("--claims", metavar="FILE",
              help="The claim file, or ready:NAME for one of ours.")  # fmt: skip
@MAX_MEMORY
@JOBS
@click.option("--digest", type=click.Choice(("sha256", "none")), default="sha256",
              show_default=True,
              help="Digests of all leaves and their root; none is faster.")  # fmt: skip
@output_options
@click.option("--journal", type=FILE,
              help="Keep finished claims here, and go on from it after a stop.")  # fmt: skip
@click.option("--sample", is_flag=True,
              help="Compare a part of each rule only: exit code 6, no proof.")  # fmt: skip
@click.option("--health", is_flag=True,
              help="Count NaN, infinities and zeros too; no part of the verdict.")  # fmt: skip
@click.option("--against", type=FILE, metavar="REPORT",
              help="Hold SOURCE alone against the digests of a report.")  # fmt: skip
@format_option("--source-format", "the source")
@format_option("--target-format", "the target")
@click.option("--allow-same", is_flag=True, help="Let both checkpoints be the same files.")
def command(
    source: Path, target: Path | None, claims: str | None, max_memory_bytes: int, jobs: int,
    digest: str, outputs: Outputs, journal: Path | None, sample: bool, health: bool,
    against: Path | None, source_format: str | None, target_format: str | None, allow_same: bool,
) -> Outcome:  # fmt: skip
    """Prove that TARGET holds the values of SOURCE under the claims, leaf by leaf.

    With --against REPORT there is one checkpoint, which is held against that report.
    """
    options = Options(
        max_memory_bytes=max_memory_bytes, jobs=jobs, digest=digest, journal=journal,
        sample=sample, health=health,
    )  # fmt: skip
    if against is not None:
        unused = {
            "TARGET": target, "--claims": claims, "--out": outputs.out, "--html": outputs.html,
            "--junit": outputs.junit, "--journal": journal, "--sample": sample,
            "--health": health, "--target-format": target_format, "--allow-same": allow_same,
            "--force": outputs.force, "--digest none": digest == "none",
        }  # fmt: skip
        _refuse(name for name, value in unused.items() if value)
        return _against(source, source_format, against, options)
    if target is None or claims is None:
        raise UsageError(
            "lockstep verify: expected SOURCE, TARGET and --claims FILE, got no "
            + ("TARGET" if target is None else "--claims"),
            hint="name it; `lockstep verify diff` compares equal names without claims",
        )
    file = [] if claims.startswith("ready:") else [Path(claims)]
    inputs = [source, target, *file]
    claim_outputs(outputs.paths, inputs, force=outputs.force, journal=journal)
    pair = Pair(source=source, target=target, source_format=source_format,
                target_format=target_format, allow_same=allow_same)  # fmt: skip
    with Progress() as progress:
        record = check_pair(pair, claims, replace(options, progress=progress))
    return outputs.write(record, exit_code(record))


def _refuse(unused: Iterator[str]) -> None:
    """No option is without effect."""
    for name in unused:
        raise UsageError(f"--against: expected no {name} beside it, got one", hint=_HINT)


def _against(checkpoint: Path, format: str | None, report: Path, options: Options) -> Outcome:
    with Progress() as progress:
        found, code = hold_against(report, checkpoint, format, replace(options, progress=progress))
    return Outcome(found.document(), "\n".join(_lines(found)), code)


def _lines(found: Against) -> Iterator[str]:
    groups = (
        ("differs", found.changed),
        ("has another type or shape", found.retyped),
        ("is in the report only", found.missing),
        ("is in the checkpoint only", found.extra),
    )
    for what, names in groups:
        yield from shortened(f"{what}: {printable(name)}" for name in names)
    yield from (f"re-checked: {text}" for text in found.rechecked)
    yield from (f"not re-checked: {text}" for text in found.not_rechecked)
    side = "source and the target" if found.side == "both" else found.side
    where = printable(found.where)
    if not found.matches:
        n_wrong = len(found.changed + found.retyped + found.missing + found.extra)
        yield (
            f"VERDICT: FAIL: {where} is not in the report: nearest is its {side}, "
            f"{leaves(n_wrong)} not as it says"
        )
    elif found.report_verdict in ("EXACT_BITS", "EXACT_UNDER"):
        yield f"VERDICT: PASS: {where} is the {side} of the report ({leaves(found.n_equal)})"
    else:
        yield (
            f"VERDICT: {found.report_verdict}: {where} is the {side} of the report, "
            "which itself shows no exact conversion"
        )
