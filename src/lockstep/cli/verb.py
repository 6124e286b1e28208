"""What a verb is: a click command that returns an outcome, in text and in JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import click


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a verb found: a document for `--json`, text for a person, and the exit code.

    `then` is what the verb does once that is printed, such as to serve; its outcome only has an
    exit code.
    """

    document: Mapping[str, Any]
    text: str = ""
    exit_code: int = 0
    then: Callable[[], Outcome] | None = None


class Verb(click.Command):
    """A command that returns an `Outcome` and has the flag `--json`.

    Under `--json` all that a verb prints while it runs goes to stderr, so it may stream its
    tokens without asking which of the two it is.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        json_flag = click.Option(
            ["--json"],
            is_flag=True,
            expose_value=False,
            help="Print one JSON document on stdout, everything else on stderr.",
        )
        self.params.append(json_flag)


class VerbGroup(click.Group):
    """A verb with verbs of its own, such as `tokenizer train`."""

    command_class = Verb

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"no_args_is_help": False, **kwargs})
