"""What the verbs that open a model share: options, their bounds, the choice of a chat template."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar, get_args

import click

from lockstep.engine.model import CONTEXT
from lockstep.engine.source import Source
from lockstep.errors import UsageError
from lockstep.ir import CacheKind
from lockstep.tokenizers import ModelTemplates, TemplateSource, choose_template

F = TypeVar("F", bound=Callable[..., Any])


def context_option(text: str, *others: str) -> Callable[[F], F]:
    """`--ctx`, or another name for it, as `context`."""
    help = f"{text}  [default: the model's, at most {CONTEXT}]"
    least = click.IntRange(2)  # one token to read, and room for the answer
    return click.option("--ctx", *others, "context", type=least, help=help)


kv_option = click.option(
    "--kv", type=click.Choice(get_args(CacheKind)),
    help="How keys and values are kept.  [default: f16, or f32 for a model in F32]",
)  # fmt: skip
threads_option = click.option(
    "--threads", type=click.IntRange(1), help="Threads.  [default: all cores]"
)


def expect_context(source: Source, context: int | None) -> None:
    """Insists that the model has the context that is asked for.

    Raises: UsageError.
    """
    most = source.model.config.context
    if context is not None and context > most:
        raise UsageError(
            f"--ctx: expected at most {most} tokens, the context of {source.where}, got {context}",
            hint="give a shorter one, or leave it out",
        )


def chosen_template(
    templates: ModelTemplates, named: str | None, *, without: str
) -> TemplateSource | None:
    """The template to talk through; None if the model has none, and none was named.

    `without` says what follows from that; if it is empty, nobody is told.

    Raises: UsageError if it is not there; InputError if its file cannot be read.
    """
    if named is not None or templates.named:
        return choose_template(templates, named)
    if without:
        print(f"note: this model has no chat template: {without} "
              "(choose one with --chat-template)", file=sys.stderr)  # fmt: skip
    return None
