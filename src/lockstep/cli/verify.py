"""`lockstep verify`: is a checkpoint conversion value-exact? Its verbs lie beside this file."""

from __future__ import annotations

import difflib
import os
from importlib import import_module

import click

from lockstep.cli.verb import VerbGroup
from lockstep.errors import UsageError

# Each is imported when it is called: what a process imports counts against its budget.
VERBS = ("prove", "ls", "plan", "diff", "digest", "suggest", "derive", "selftest")
DEFAULT = VERBS[0]


class _Verify(VerbGroup):
    """A group whose verb `prove` may be left out: `lockstep verify SRC DST --claims FILE`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Puts `prove` in front of what names no verb.

        Raises: UsageError for what is neither a verb nor a checkpoint, but nearly a verb.
        """
        if args and args[0] not in (*VERBS, *ctx.help_option_names):
            self._refuse_a_typo(args[0])
            args = [DEFAULT, *args]
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs, in the order in which a newcomer meets them."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb, or `prove` for a word that names none."""
        verb = cmd_name if cmd_name in VERBS else DEFAULT
        found: click.Command = import_module(f"lockstep.cli.verify_{verb}").command
        return found

    def _refuse_a_typo(self, word: str) -> None:
        near = difflib.get_close_matches(word, VERBS, n=1, cutoff=0.6)
        if near and not os.path.lexists(word):
            raise UsageError(
                f"lockstep verify: expected a verb or a checkpoint, got {word!r}",
                hint=f"try `lockstep verify {near[0]}`",
            )


@click.group(cls=_Verify)
def command() -> None:
    """Prove that a checkpoint conversion is value-exact, in bounded memory.

    `prove` may be left out: `lockstep verify SRC DST --claims FILE`. A checkpoint that is named
    like a verb is reached as ./NAME.

    Exit codes: 0 all is value-exact; 1 values differ, whatever else is wrong; 2 no value differs,
    but the claims or their coverage do not add up; 3 something is not installed; 4 a file is
    unreadable, damaged, or changed meanwhile; 5 the memory allowed is too small; 6 a part is equal
    only inexactly, or was not compared.
    """
