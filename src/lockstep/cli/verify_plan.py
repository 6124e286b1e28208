"""`lockstep verify plan`: what a claim file says of two checkpoints, before any data is read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from lockstep.artifacts.printable import names, printable, size
from lockstep.cli.verb import Outcome, Verb
from lockstep.cli.verify_options import CLAIMS, FILE, JOBS, MAX_MEMORY, format_option
from lockstep.cli.verify_text import leaves, problem_lines, shortened
from lockstep.verify.api import Pair, plan_of
from lockstep.verify.plan_listing import PlanListing, PlannedClaim, list_plan


@click.command("plan", cls=Verb)
@click.argument("source", type=FILE)
@click.argument("target", type=FILE)
@CLAIMS
@MAX_MEMORY
@JOBS
@format_option("--source-format", "the source")
@format_option("--target-format", "the target")
@click.option("--allow-same", is_flag=True, help="Let both checkpoints be the same files.")
def command(
    source: Path, target: Path, claims: str, max_memory_bytes: int, jobs: int,
    source_format: str | None, target_format: str | None, allow_same: bool,
) -> Outcome:  # fmt: skip
    """Show every claim, its predicted memory, what shapes cannot tell, and what is wrong.

    Exit code 2 if the claims do not add up, 5 if one does not fit the memory.
    """
    pair = Pair(source=source, target=target, source_format=source_format,
                target_format=target_format, allow_same=allow_same)  # fmt: skip
    found = list_plan(plan_of(pair, claims), max_memory_bytes, jobs)
    code = 2 if found.problems or not found.claims else 5 if found.n_refused else 0
    return Outcome(found.document(), "\n".join(_lines(found)), code)


def _lines(found: PlanListing) -> Iterator[str]:
    yield from map(_claim, found.claims)
    for excuse in found.excuses:
        yield f"{excuse.kind}: {excuse.side} {printable(excuse.leaf)}: {printable(excuse.reason)}"
    for tie in found.ties:
        yield f"tied: {', '.join(map(printable, tie))}"
    if found.facts:
        yield "facts: " + ", ".join(f"{k} = {printable(v)}" for k, v in found.facts.items())
    if found.ambiguities:
        yield "where shapes show nothing:"
        yield from shortened(f"  {a.kind}: {printable(a.message)}" for a in found.ambiguities)
    if found.problems:
        yield "the claims do not add up:"
        yield from shortened(problem_lines(found.problems))
    yield _summary(found)


def _claim(claim: PlannedClaim) -> str:
    sources = names(claim.sources) or "a constant"
    text = f"{printable(claim.target)} <- {sources}"
    if claim.transform != "identity":
        text += f" | {printable(claim.transform)}"
    if claim.equality != "bits":
        text += f" ({claim.equality})"
    if claim.refused:
        text += f"\n    does not fit: {printable(claim.refused)}"
    return text


def _summary(found: PlanListing) -> str:
    groups = len({claim.group for claim in found.claims})
    peak = found.predicted_peak_bytes
    memory = "unknown" if peak is None else size(peak)
    text = (
        f"{leaves(len(found.claims))} claimed in {groups} group{'s' * (groups != 1)}; "
        f"predicted peak {memory} of {size(found.budget_bytes)}"
    )
    wrong = [f"{len(found.problems)} problems"] if found.problems else []
    wrong += [f"{found.n_refused} claims that do not fit"] if found.n_refused else []
    return f"{text}; {', '.join(wrong)}" if wrong else f"{text}; the claims add up"
