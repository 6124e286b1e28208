"""Options that several verbs share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from math import isfinite
from pathlib import Path
from typing import Any, Literal, TypeVar

import click

from lockstep.artifacts import RunDir
from lockstep.cli.verb import Outcome
from lockstep.errors import UsageError

F = TypeVar("F", bound=Callable[..., Outcome])

MODEL_DIMS = (
    ("--layers", "layers", "Number of layers."),
    ("--embed-dim", "embed_dim", "Width of the model."),
    ("--hidden-dim", "hidden_dim", "Width of the feed-forward blocks."),
    ("--num-heads", "num_heads", "Number of query heads."),
    ("--num-kv-heads", "num_kv_heads", "Number of key and value heads."),
    ("--context-len", "context_len", "Longest sequence, in tokens."),
    ("--vocab-size", "vocab_size", "Number of token ids."),
)


class Finite(click.FloatRange):
    """A number within bounds; the ranges of click let NaN pass."""

    name = "number"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The number.

        Raises: click.BadParameter if it is none, not finite, or out of bounds.
        """
        number: float = super().convert(value, param, ctx)
        if not isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


def run_option(callback: F) -> F:
    """Passes `run: RunDir`, named as the argument RUN or with --run."""

    @click.argument("run_name", metavar="[RUN]", required=False)
    @click.option("--run", "run_flag", help="The run, by name or path; the same as RUN.")
    @wraps(callback)
    def with_run(run_name: str | None, run_flag: str | None, **rest: Any) -> Outcome:
        return callback(run=resolved_run(run_name, run_flag), **rest)

    return with_run  # type: ignore[return-value]  # click changes the signature


def resolved_run(argument: str | None, flag: str | None) -> RunDir:
    """The run that is named once, as an argument or by a flag.

    Raises: UsageError if none is, or two are.
    """
    names = [name for name in (argument, flag) if name]
    if len(names) != 1:
        raise UsageError(
            f"run: expected one name or path, got {len(names)}",
            hint="name the run, for example `demo`, or a path with a '/'",
        )
    return RunDir.resolve(names[0])


def options(*groups: tuple[Any, ...]) -> Callable[[F], F]:
    """Adds whole options `(flag, name, help, keywords)` in their order."""

    def add(callback: F) -> F:
        for flag, name, text, *keywords in reversed(groups):
            callback = click.option(flag, name, help=text, **(keywords[0] if keywords else {}))(
                callback
            )
        return callback

    return add


def said(values: Mapping[str, Any]) -> dict[str, Any]:
    """What was given on the command line: all that is not None."""
    return {name: value for name, value in values.items() if value is not None}


def refuse_existing(
    paths: Iterable[Path], *, force: bool, kind: Literal["file", "directory"] | None = None
) -> None:
    """Insists that no output is there yet, unless it may be replaced and is of this kind, if any.

    Raises: UsageError naming the first that is.
    """
    paths = list(paths)
    found = next((path for path in paths if os.path.lexists(path)), None)
    if found is not None and not force:
        raise UsageError(
            f"{found}: expected a new file, got one that is there",
            hint="give --force to replace it, or choose another --out",
        )
    for path in paths:
        if kind and path.exists() and path.is_dir() != (kind == "directory"):
            found_kind = "directory" if path.is_dir() else "file"
            raise UsageError(
                f"{path}: expected a {kind}, got a {found_kind}",
                hint="choose another --out",
            )
