"""`lockstep compare`: where our C and the truth first part, and whose fault it is."""

from __future__ import annotations

import math
from collections.abc import Iterator

import click

from lockstep.artifacts import RunDir
from lockstep.artifacts.compare import Compare, Comparison, NodeRow
from lockstep.cli.options import run_option
from lockstep.cli.verb import Outcome, Verb
from lockstep.proof.compare_run import compare_run


@click.command(cls=Verb)
@run_option
@click.option("--batch", type=int, default=2, show_default=True, help="Sequences in a microbatch.")
@click.option(
    "--tokens", type=int, help="Tokens in a sequence.  [default: 32, or what the run has room for]"
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Of the moments that are drawn."
)
def command(run: RunDir, batch: int, tokens: int | None, seed: int) -> Outcome:
    """Compare a run's training program, node by node, with float64 and with transformers.

    Names the first guilty node and its line of C. Writes compare.json into the run.
    """
    record = compare_run(run, batch=batch, tokens=tokens, seed=seed, progress=_stage)
    document = {**record.document(), "file": str(run.path / Compare.file)}
    return Outcome(document, "\n".join(_lines(record)), 0 if record.passed else 1)


def _stage(text: str) -> None:
    """Shows what begins, but not each node and entry: that would be hundreds of lines."""
    if " " in text and not text.startswith("entry "):
        click.echo(text, err=True)


def _lines(record: Compare) -> Iterator[str]:
    yield f"{record.graph}; {record.batch}"
    for pair in record.comparisons:
        verdict = "pass" if pair.passed else "FAIL"
        yield f"{verdict}  {pair.left} against {pair.right}"
        yield f"      {pair.nodes_compared:,} nodes, {pair.values_compared:,} values"
        yield from (f"      {line}" for line in _details(pair))
    if "transformers" in record.not_measured:
        yield f"not measured: transformers ({record.not_measured['transformers']})"
    guilty = [pair.first_guilty for pair in record.comparisons if pair.first_guilty]
    if not guilty:
        yield "no guilty node"
    for first in guilty[:1]:
        place = f"{first.c_file}:{first.c_line}, kernel {first.kernel_source}"
        yield f"first guilty: {first.id} ({first.op}, {first.phase}), {place}: {first.why}"


def _details(pair: Comparison) -> Iterator[str]:
    bad = [row.id for row in pair.nodes if row.verdict in ("culprit", "victim")]
    if bad:
        more = f" and {len(bad) - 6} more" if len(bad) > 6 else ""
        yield f"{len(bad)} out of bounds: {', '.join(bad[:6])}{more}"
    if any(row.peer_error is not None for row in pair.nodes):
        yield from _nearer(pair)
        return
    rows = [row for row in pair.nodes if row.local_error is not None]
    worst = max(rows, key=_share, default=None)
    if worst is not None and worst.bound:
        error, bound = worst.local_error, worst.bound
        yield f"worst local error: {worst.id} ({worst.op}), {error:.2g} of {bound:.2g} allowed"
    counts: dict[str, int] = {}
    for row in pair.nodes:
        counts[row.phase] = counts.get(row.phase, 0) + 1
    yield ", ".join(f"{phase} {n}" for phase, n in counts.items())


def _nearer(pair: Comparison) -> Iterator[str]:
    """Who is nearer the truth, phase by phase."""
    for phase, title in (("forward", "logits, loss"), ("backward", "gradients"),
                         ("update", "updates")):  # fmt: skip
        rows = [row for row in pair.nodes if row.phase == phase]
        shown = [(r.cumulative_error, r.peer_error) for r in rows]
        both = [(ours, peer) for ours, peer in shown if ours is not None and peer is not None]
        if both:
            nearer = sum(ours <= peer for ours, peer in both)
            yield (
                f"{title}: ours {max(o for o, _ in both):.2g}, theirs {max(p for _, p in both):.2g}"
                f" at worst; ours is as near or nearer in {nearer} of {len(rows)}"
            )


def _share(row: NodeRow) -> float:
    if row.local_error is None:
        return math.inf
    return row.local_error / row.bound if row.bound else 0.0
