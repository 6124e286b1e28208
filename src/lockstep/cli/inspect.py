"""`lockstep inspect`: what a model is, whether it runs here, and how fast it can be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import click

from lockstep.artifacts.printable import printable, size
from lockstep.cli.model_options import context_option, expect_context, kv_option, threads_option
from lockstep.cli.verb import Outcome, Verb
from lockstep.engine.inspection import Contents, Running, contents, running
from lockstep.engine.model import Capacity
from lockstep.engine.source import open_source
from lockstep.errors import BudgetError, EnvironmentLacks, LockstepError
from lockstep.ir import print_graph
from lockstep.native.program import usable_threads
from lockstep.native.read_rate import READS, read_rate

_SHOWN = 160  # characters of a value of the metadata


@click.command(cls=Verb)
@click.argument("model")
@context_option("Tokens of context.")
@click.option("--depth", type=click.IntRange(0), default=0, show_default=True,
              help="Tokens read before the one whose cost is predicted.")  # fmt: skip
@kv_option
@threads_option
@click.option("--tensors", is_flag=True, help="List every tensor.")
@click.option("--graph", is_flag=True, help="Print the lowered graph.")
def command(
    model: str, context: int | None, depth: int, kv: Any, threads: int | None,
    tensors: bool, graph: bool,
) -> Outcome:  # fmt: skip
    """Say what a model holds, whether it runs here, and the speed that memory allows."""
    found, error, runs = _looked_at(model, context, depth, kv)
    reason = None if error is None else str(error)
    rate, no_rate = _rate(threads or usable_threads()) if runs else (None, reason)
    document = {
        "model": model,
        "metadata": {key: _plain(value) for key, value in found.metadata.items()} if found else {},
        "tensors": [asdict(tensor) for tensor in found.tensors] if found else [],
        "types": found.types if found else {},
        "runs": runs is not None,
        "reason": reason,
        **_running_record(runs),
        "read_bytes_per_second": rate,
        "read_reason": no_rate,
        "bound_tokens_per_second": rate / runs.bytes_per_token if rate and runs else None,
        **({"graph": print_graph(runs.graph)} if graph and runs else {}),
    }
    lines = [*_contents_lines(model, found, tensors), *_running_lines(runs, reason, rate, no_rate)]
    if graph and runs:
        lines += ["", print_graph(runs.graph).rstrip()]
    return Outcome(document, "\n".join(lines), 0 if error is None else error.exit_code)


def _looked_at(
    name: str, context: int | None, depth: int, cache: Any
) -> tuple[Contents | None, LockstepError | None, Running | None]:
    """What is in the files, why it cannot be run, and what running takes.

    Raises: LockstepError if there is nothing to look at, or more context than the model has.
    """
    try:
        source = open_source(name)
    except LockstepError as error:
        try:
            return contents(name), error, None
        except (LockstepError, OSError):
            raise error from None
    expect_context(source, context)
    found = None if source.kind == "run" else contents(str(source.path))
    try:
        return found, None, running(source, Capacity(context=context, cache=cache), depth=depth)
    except LockstepError as error:
        return found, error, None


def _rate(threads: int) -> tuple[float | None, str | None]:
    try:
        return read_rate(threads), None
    except (EnvironmentLacks, BudgetError) as error:
        return None, error.message


def _running_record(runs: Running | None) -> dict[str, Any]:
    if runs is None:
        return {}
    ops = Counter(node.op.name for node in runs.graph.nodes)
    return {
        "family": runs.family,
        "config": asdict(runs.config),
        "parameters": runs.n_parameters,
        "context": runs.shape.context,
        "cache": runs.shape.cache,
        "nodes": dict(sorted(ops.items())),
        "memory_plan": {name: n for name, n in runs.plan.arenas.items() if n},
        "depth": runs.depth,
        "weight_bytes_per_token": runs.weight_bytes_per_token,
        "cache_bytes_per_token": runs.cache_bytes_per_token,
        "bytes_per_token": runs.bytes_per_token,
    }


def _contents_lines(name: str, found: Contents | None, tensors: bool) -> Iterator[str]:
    yield printable(name)
    if found is None:
        return
    yield "metadata"
    for key, value in found.metadata.items():
        yield f"  {printable(key)} = {printable(str(_plain(value)))[:_SHOWN]}"
    kinds = ", ".join(f"{n} {name} ({size(b)})" for name, (n, b) in found.types.items())
    yield f"tensors: {len(found.tensors)}: {kinds}"
    if tensors:
        for line in found.tensors:
            shape = "x".join(map(str, line.shape))
            yield f"  {printable(line.name):<40} {line.stored:<6} {shape:<16} {size(line.n_bytes)}"


def _running_lines(
    runs: Running | None, reason: str | None, rate: float | None, no_rate: str | None
) -> Iterator[str]:
    if runs is None:
        yield f"runs here: no\n  {reason}"
        return
    ops = Counter(node.op.name for node in runs.graph.nodes)
    yield f"runs here: yes, as {runs.family} with {runs.n_parameters / 1e6:.1f}M parameters"
    yield f"graph: {len(runs.graph.nodes)} nodes: " + ", ".join(
        f"{n} {name}" for name, n in ops.most_common()
    )
    plan = ", ".join(f"{name} {size(n)}" for name, n in runs.plan.arenas.items() if n)
    yield f"memory plan (context {runs.shape.context}, cache {runs.shape.cache}): {plan}"
    yield (
        f"a token reads {size(runs.bytes_per_token)}: {size(runs.weight_bytes_per_token)} of "
        f"weights, {size(runs.cache_bytes_per_token)} of caches at depth {runs.depth}"
    )
    if rate is None:
        yield f"speed bound: not measured: {no_rate}"
    else:
        bound = rate / runs.bytes_per_token
        yield (
            f"speed bound: {bound:.1f} tokens/s, at {rate / 1e9:.1f} GB/s, the best of {READS} "
            "reads of memory here"
        )


def _plain(value: object) -> object:
    """A value as JSON has it; of a long array its length and beginning."""
    if isinstance(value, str | int | float | bool) or value is None:
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    items = list(value)  # type: ignore[call-overload]
    if len(items) > 64:
        return {"length": len(items), "first": [_plain(item) for item in items[:4]]}
    return [_plain(item) for item in items]
