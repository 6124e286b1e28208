"""`lockstep compare`: where our C and the truth first part, and whose fault it is."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict

import click

from lockstep.artifacts import Check
from lockstep.artifacts.compare import Compare, Comparison, NodeRow
from lockstep.artifacts.train_config import TrainConfig
from lockstep.cli.options import resolved_run
from lockstep.cli.verb import Outcome, Verb
from lockstep.engine.source import Source, local_path, open_source
from lockstep.errors import InputError, UsageError
from lockstep.proof.compare_metadata import metadata_check
from lockstep.proof.compare_models import compare_models
from lockstep.proof.compare_run import compare_run
from lockstep.proof.compare_stated import refused_conversion

TOKENS = 32  # in a sequence, unless asked for more


@click.command(cls=Verb)
@click.argument("model", metavar="[RUN|MODEL]", required=False)
@click.argument("original", required=False)
@click.option("--run", "run_flag", help="The run, by name or path; the same as RUN.")
@click.option("--batch", type=click.IntRange(1), help="Sequences in a microbatch.  [default: 2]")
@click.option(
    "--tokens", type=int, help="Tokens in a sequence.  [default: 32, or what there is room for]"
)
@click.option(
    "--seed",
    type=int,
    default=0,
    show_default=True,
    help="Of the numbers that are drawn.",
)
def command(
    model: str | None, original: str | None, run_flag: str | None, batch: int | None,
    tokens: int | None, seed: int,
) -> Outcome:  # fmt: skip
    """Compare node by node, and name the first that is guilty.

    RUN alone: its training program with float64 and with transformers; names the guilty line of C
    and writes compare.json into the run. MODEL and ORIGINAL (GGUF files, Hugging Face directories,
    runs): whether the one is still the other, and if not, what its conversion did wrong.
    """
    if original is None:
        return _compare_run(model, run_flag, batch or 2, tokens, seed)
    if model is None or run_flag is not None or batch is not None:
        raise UsageError(
            "compare: expected MODEL ORIGINAL, or a run with --run and --batch, got both",
            hint="leave out --run and --batch to compare two models",
        )
    return _compare_models(model, original, tokens, seed)


def _compare_run(
    name: str | None, flag: str | None, batch: int, tokens: int | None, seed: int
) -> Outcome:
    run = resolved_run(name, flag)
    if run.path.exists() and not (run.path / TrainConfig.file).is_file():
        raise UsageError(
            f"compare: expected a run, or MODEL and its ORIGINAL, got {name or flag} alone, which "
            "is no run",
            hint="name what the model was made from as well",
        )
    record = compare_run(run, batch=batch, tokens=tokens, seed=seed, progress=_stage)
    document = {**record.document(), "file": str(run.path / Compare.file)}
    return Outcome(document, "\n".join(_lines(record)), 0 if record.passed else 1)


def _compare_models(model: str, original: str, wanted: int | None, seed: int) -> Outcome:
    left, right = _opened(model, original)
    most = min(side.model.config.context for side in (left, right))
    tokens = min(TOKENS, most) if wanted is None else wanted
    if not 1 <= tokens <= most or seed < 0:
        raise UsageError(
            f"compare: expected 1 to {most} tokens and a seed of at least 0, "
            f"got {tokens} and {seed}",
            hint="choose other --tokens or --seed",
        )
    pair, beside = compare_models(left, right, tokens=tokens, seed=seed, progress=_layer)
    metadata = metadata_check(left, right)
    passed = pair.passed and "fail" not in (metadata.verdict, beside.verdict)
    document = {
        "passed": passed,
        "comparison": asdict(pair),
        "metadata": asdict(metadata),
        "original_beside": asdict(beside),
    }
    text = "\n".join(_model_lines(pair, metadata, beside))
    return Outcome(document, text, 0 if passed else 1)


def _opened(model: str, original: str) -> tuple[Source, Source]:
    """The two, where what a conversion lost or misstated is a finding and not a damaged file.

    Raises: GateError naming the keys or tensors that are not those of the original.
    """
    right = open_source(original)
    try:
        return open_source(model), right
    except InputError as error:
        found = refused_conversion(local_path(model), right, error)
        raise found or error from error


def _model_lines(pair: Comparison, metadata: Check, beside: Check) -> Iterator[str]:
    yield f"{'pass' if pair.passed else 'FAIL'}  {pair.left} against {pair.right}"
    yield f"      {pair.nodes_compared:,} nodes, {pair.values_compared:,} values in float64"
    yield from (f"      {line}" for line in _details(pair))
    verdict = "FAIL" if metadata.verdict == "fail" else metadata.verdict
    found = f": {metadata.reason}" if metadata.reason else ""
    yield f"{verdict}  {metadata.compared} facts of the metadata{found}"
    yield f"{beside.verdict}  the original against {beside.against}: " + (
        f"{beside.figure:.2g} of {beside.bound:.2g} allowed"
        if beside.figure is not None and beside.bound is not None
        else beside.reason
    )
    if pair.first_guilty is None:
        yield "no guilty node"
    else:
        yield f"first guilty: {pair.first_guilty.id} ({pair.first_guilty.op}): " + (
            pair.first_guilty.why
        )


def _layer(node: str) -> None:
    """Shows that a layer begins."""
    if node.endswith(".norm1"):
        click.echo(node.removesuffix(".norm1"), err=True)


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
