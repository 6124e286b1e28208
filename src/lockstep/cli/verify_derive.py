"""`lockstep verify derive`: what a converter does, seen by running it on markers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from lockstep.artifacts.derivation import ComparedClaim, Derivation, DerivedLeaf, Outcome, Place
from lockstep.artifacts.files import atomic_write_text
from lockstep.artifacts.printable import names, printable
from lockstep.cli.verb import Outcome as Said
from lockstep.cli.verb import Verb
from lockstep.cli.verify_options import FILE, FORCE, format_option
from lockstep.cli.verify_outputs import claim_outputs
from lockstep.cli.verify_text import leaves, problem_lines, shortened
from lockstep.verify.claims.rules import ClaimFile, ClaimRule
from lockstep.verify.derivation.converter import Converter
from lockstep.verify.derivation.derive import Request, derive
from lockstep.verify.numbers.rounding import NEAREST

EXIT_CODES: dict[Outcome, int] = {
    "derived": 0,
    "data-dependent": 1,
    "differs": 1,
    "claims do not add up": 2,
    "partly derived": 6,
}
_SHOWN_RULES = 60
_DEFAULTS = NEAREST.text.split(", ")


@click.command("derive", cls=Verb)
@click.argument("template", type=FILE)
@click.option("--run", "command_line", required=True, metavar="COMMAND",
              help="The converter, with {source} and {target} where its paths go.")  # fmt: skip
@click.option("--claims", metavar="FILE",
              help="Hold these claims against what the converter does.")  # fmt: skip
@click.option("--out", type=FILE, help="Write what was derived as a claim file (TOML).")
@click.option("--record", type=FILE, help="Write the record as JSON, whatever the outcome.")
@click.option("--timeout", "timeout_s", type=click.IntRange(1, 86_400), default=600,
              show_default=True,
              help="Seconds that one run of the converter may take.")  # fmt: skip
@click.option("--keep", type=FILE, metavar="DIR",
              help="Keep what the converter was given and what it wrote.")  # fmt: skip
@click.option("--shell", is_flag=True, help="Run the command through /bin/sh.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True,
              help="Which markers and which random values.")  # fmt: skip
@format_option("--source-format", "the template")
@format_option("--target-format", "what the converter writes")
@FORCE
def command(
    template: Path, command_line: str, claims: str | None, out: Path | None, record: Path | None,
    timeout_s: int, keep: Path | None, shell: bool, seed: int, source_format: str | None,
    target_format: str | None, force: bool,
) -> Said:  # fmt: skip
    """Recover the map of a converter: which element of the source stands at each place it writes.

    TEMPLATE is a small checkpoint that the converter takes, best with all sizes different. Its
    names, shapes, types and side files are kept; its values are replaced by markers. The converter
    runs some five times, each time in a temporary directory; paths in COMMAND that are not
    absolute are seen from here.

    Exit code 1 if the claims say another map, or the converter decides by values where elements
    go; 2 if the claims do not add up; 4 if the converter fails, takes too long or writes nothing
    that can be read; 6 if a part of the target was not derived.
    """
    inputs = [template, *([Path(claims)] if claims and not claims.startswith("ready:") else [])]
    claim_outputs([out, record], inputs, force=force)
    request = Request(
        template=template, converter=Converter(command_line, float(timeout_s), shell),
        claims=claims, source_format=source_format, target_format=target_format, keep=keep,
        seed=seed, say=lambda text: click.echo(f"{text} ...", err=True),
    )  # fmt: skip
    found = derive(request)
    written = []
    if out is not None:
        written.append(atomic_write_text(out, found.rules.to_toml()))
    if record is not None:
        written.append(found.record.save(record.parent, record.name))
    lines = [*(f"wrote {path}" for path in written), *_lines(found.record, found.rules)]
    return Said(found.record.document(), "\n".join(lines), EXIT_CODES[found.record.outcome])


def _lines(found: Derivation, rules: ClaimFile) -> Iterator[str]:
    yield from shortened(map(_rule, rules.claims), _SHOWN_RULES)
    named = (leaf for leaf in found.leaves if leaf.status != "derived" or not leaf.transform)
    yield from shortened(map(_leaf, named), _SHOWN_RULES)
    unsure = dict.fromkeys(choice for leaf in found.leaves for choice in leaf.unsure)
    yield from (f"not known: {printable(choice)}" for choice in unsure)
    for name, reason in found.unmarked.items():
        yield f"no markers in {printable(name)}: {printable(reason)}"
    if found.unused:
        yield "of no use to the converter:"
        yield from shortened(f"  {printable(name)}" for name in found.unused)
    yield from (f"note: {printable(note)}" for note in found.notes)
    if found.warnings:
        yield "where the template is no evidence for other sizes:"
        yield from (f"  {printable(text)}" for text in found.warnings)
    yield from _claims(found)
    yield (
        f"cost: {found.n_runs} runs of the converter in {found.seconds:.3g} s, "
        f"{found.n_ids:,} elements marked with digits up to {found.highest_digit}"
    )
    yield _verdict(found)


def _rule(rule: ClaimRule) -> str:
    """Leaves that are alike, as a claim file has them; choices that are as by default left out."""
    own = (" | ".join(map(_brief, each.transform)) for each in rule.sources)
    sources = names([
        f"({each.name} | {steps})" if steps else each.name
        for each, steps in zip(rule.sources, own, strict=True)
    ])  # fmt: skip
    where = f"  where {printable(rule.where)}" if rule.where else ""
    return (
        " | ".join([f"{printable(rule.target)} <- {sources}", *map(_brief, rule.transform)]) + where
    )


def _brief(step: str) -> str:
    for choice in _DEFAULTS:
        step = step.replace(f", {choice}", "")
    return printable(step)


def _leaf(leaf: DerivedLeaf) -> str:
    name = printable(leaf.target)
    if leaf.status != "derived":
        return f"{name}: {leaf.status}: {printable(leaf.why)}"
    n = "irregular" if leaf.n_pieces is None else f"{leaf.n_pieces} pieces"
    return f"{name} <- {names(leaf.sources)} | {n}: {printable(leaf.why)}"


def _claims(found: Derivation) -> Iterator[str]:
    differ = [row for row in found.claims if row.agrees is False]
    unknown = [row for row in found.claims if row.agrees is None]
    if differ:
        yield "where claims and converter part:"
        yield from shortened(map(_difference, differ))
    if unknown:
        yield "claims that could not be held against the converter:"
        yield from shortened(f"  {printable(r.target)}: {printable(r.why)}" for r in unknown)
    if found.problems:
        yield "the claims do not add up:"
        yield from shortened(problem_lines(found.problems))


def _difference(row: ComparedClaim) -> str:
    text = f"  {printable(row.target)} ({printable(row.rule)}): {printable(row.why)}"
    if row.claimed is None or row.derived is None:
        return text
    where = f"first at {list(row.index)}"
    if row.claimed == row.derived:
        return f"{text}\n      {where}, which is {_spot(row.claimed)}"
    return f"{text}\n      {where}: claimed {_spot(row.claimed)}, converted {_spot(row.derived)}"


def _spot(place: Place) -> str:
    return f"{printable(place.leaf)}{list(place.index)}" if place.leaf else "a constant"


def _verdict(found: Derivation) -> str:
    n = len(found.leaves)
    if found.outcome == "data-dependent":
        bad = sum(leaf.status == "data-dependent" for leaf in found.leaves)
        return (
            f"VERDICT: FAIL: the converter decides by values where elements go, in {bad} of "
            f"{leaves(n)}; no map describes it"
        )
    if found.outcome == "differs":
        bad = sum(row.agrees is False for row in found.claims)
        return f"VERDICT: FAIL: the claims say of {leaves(bad)} what the converter does not do"
    if found.outcome == "claims do not add up":
        return f"VERDICT: FAIL: {len(found.problems)} problems in claims or coverage"
    agreed = f"; {len(found.claims)} claims agree with it, element by element"
    ending = agreed if found.claims_digest else ""
    if found.outcome == "partly derived":
        bad = sum(leaf.status == "not derived" for leaf in found.leaves)
        done = sum(row.agrees is True for row in found.claims)
        ending = f"; {done} of {len(found.claims)} claims agree" if found.claims_digest else ""
        return f"VERDICT: PARTLY: {bad} of {leaves(n)} not derived{ending}"
    return f"VERDICT: PASS: the map of {leaves(n)} is derived{ending}"
