"""`lockstep verify selftest`: faults planted in one's own target, and whether each is seen."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import click

from lockstep.artifacts.printable import printable, size
from lockstep.artifacts.selftest import MutationRow, Selftest
from lockstep.cli.verb import Outcome, Verb
from lockstep.cli.verify_options import CLAIMS, FILE, FORCE, MAX_MEMORY, format_option
from lockstep.cli.verify_outputs import claim_outputs
from lockstep.cli.verify_text import shortened
from lockstep.verify.api import Pair
from lockstep.verify.mutation.selftest import selftest
from lockstep.verify.mutation.selftest_picks import Trial

_SECONDS = 5.0  # between two words about how far it is


@click.command("selftest", cls=Verb)
@click.argument("source", type=FILE)
@click.argument("target", type=FILE)
@CLAIMS
@MAX_MEMORY
@click.option("--per-rule", type=click.IntRange(1, 1000), default=2, show_default=True,
              help="Leaves of each rule: the largest, and others that are drawn.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Of what is drawn.")
@click.option("--out", type=FILE, help="Write the record as JSON.")
@FORCE
@format_option("--source-format", "the source")
@format_option("--target-format", "the target")
def command(
    source: Path, target: Path, claims: str, max_memory_bytes: int, per_rule: int, seed: int,
    out: Path | None, force: bool, source_format: str | None, target_format: str | None,
) -> Outcome:  # fmt: skip
    """Plant faults in TARGET, without writing to it, and show that each is caught.

    Exit code 1 if one that applies is not, or if something that changes no value fails.
    """
    file = [] if claims.startswith("ready:") else [Path(claims)]
    claim_outputs([out], [source, target, *file], force=force)
    pair = Pair(source=source, target=target, source_format=source_format,
                target_format=target_format)  # fmt: skip
    trial = Trial(max_memory_bytes=max_memory_bytes, per_rule=per_rule, seed=seed,
                  progress=_Told())  # fmt: skip
    record = selftest(pair, claims, trial)
    lines = list(_lines(record))
    if out is not None:
        lines.insert(0, f"wrote {record.save(out.parent, out.name)}")
    return Outcome(record.document(), "\n".join(lines), 0 if record.passed else 1)


class _Told:
    """Says now and then how many mutations are done."""

    def __init__(self) -> None:
        self._said = time.monotonic()

    def __call__(self, n_done: int, n_all: int) -> None:
        now = time.monotonic()
        if now - self._said >= _SECONDS:
            self._said = now
            print(f"{n_done:,} of {n_all:,} mutations", file=sys.stderr, flush=True)


def _lines(record: Selftest) -> Iterator[str]:
    for section in dict.fromkeys(row.section for row in record.rows):
        yield f"{section}:"
        rows = [row for row in record.rows if row.section == section]
        for name in dict.fromkeys(row.mutation for row in rows):
            yield f"  {_summary(name, [row for row in rows if row.mutation == name])}"
    wrong = [row for row in record.rows if row.outcome in ("missed", "false alarm")]
    yield from shortened(f"{row.outcome.upper()}: {_told(row)}" for row in wrong)
    unnamed = [row for row in record.rows if row.named == "no"]
    yield from shortened(f"caught, but not named: {_told(row)}" for row in unnamed)
    yield from (f"left out: {printable(text)}" for text in record.left_out)
    n_passed = sum(row.outcome == "passed" for row in record.rows)
    n_harmless = n_passed + sum(row.outcome == "false alarm" for row in record.rows)
    n_all = record.n_caught + sum(row.outcome == "missed" for row in record.rows)
    yield (
        f"{len(record.picked)} leaves picked, seed {record.seed}; read {size(record.bytes_read)} "
        f"in {record.seconds:.1f} s"
    )
    yield (
        f"VERDICT: {'PASS' if record.passed else 'FAIL'}: {record.n_caught} of {n_all} mutations "
        f"caught, {n_passed} of {n_harmless} harmless changes passed"
    )


def _summary(name: str, rows: list[MutationRow]) -> str:
    """`gate and up exchanged: caught 4/4, named 4/4`, or why it does not apply."""
    found = Counter(row.outcome for row in rows)
    n_all = len(rows) - found["not applicable"]
    if not n_all:
        why = Counter(row.why for row in rows).most_common(1)[0][0]
        return f"{name}: not applicable ({printable(why)})"
    if found["passed"] or found["false alarm"]:
        return f"{name}: passed {found['passed']}/{n_all}"
    n_named = sum(row.named == "yes" for row in rows)
    n_to_name = n_named + sum(row.named == "no" for row in rows)
    named = f", named {n_named}/{n_to_name}" if n_to_name else ""
    return f"{name}: caught {found['caught']}/{n_all}{named}"


def _told(row: MutationRow) -> str:
    return f"{row.mutation}: {printable(row.place)}: {printable(row.words)[:300]}"
