"""Options that the verbs of `verify` share, and sizes such as 64MiB."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from lockstep.formats.open_store import LOCATORS
from lockstep.verify.engine.budget import n_processors, roomy

F = TypeVar("F", bound=Callable[..., Any])
FILE = click.Path(path_type=Path)
_MOST = 1 << 62  # more than any machine has; sums of two stay below 2^63
FORCE = click.option("--force", is_flag=True, help="Replace an output that is there.")
_UNITS = {
    "": 1, "b": 1,
    **{f"{sign}ib": 1 << 10 * power for power, sign in enumerate("kmgt", 1)},
    **{f"{sign}b": 1000**power for power, sign in enumerate("kmgt", 1)},
}  # fmt: skip
_SIZE = re.compile(r"\s*(\d{1,18}(?:\.\d{1,9})?)\s*([kmgt]?i?b|)\s*", re.IGNORECASE | re.ASCII)


class Size(click.ParamType):  # type: ignore[type-arg]  # older ones are not generic
    """A number of bytes: `64MiB` (2^20), `1.5GiB`, `500MB` (10^6), or plain bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The bytes.

        Raises: click.BadParameter if it is no size, or none at all.
        """
        if isinstance(value, int):
            return value
        found = _SIZE.fullmatch(str(value))
        unit = _UNITS.get(found[2].lower()) if found else None
        if found is None or unit is None or ("." in found[1] and unit == 1):
            self.fail(f"expected a size such as 64MiB or 1.5GiB, got {value!r:.40}.", param, ctx)
        n_bytes = int(float(found[1]) * unit) if "." in found[1] else int(found[1]) * unit
        if n_bytes > _MOST:
            self.fail(f"expected less than 2^62 bytes, got {value!r:.40}.", param, ctx)
        if n_bytes < 1:
            self.fail(f"expected at least one byte, got {value!r:.40}.", param, ctx)
        return n_bytes


def format_option(flag: str, what: str) -> Callable[[F], F]:
    """Names the format of a checkpoint, where its content is not to decide."""
    return click.option(flag, type=click.Choice(tuple(LOCATORS)),
                        help=f"The format of {what}.  [default: by its content]")  # fmt: skip


MAX_MEMORY = click.option("--max-memory", "max_memory_bytes", type=Size(), default=roomy,
                          help="Most memory of the whole process; more is refused.  "
                          "[default: 1GiB]")  # fmt: skip
JOBS = click.option("--jobs", type=click.IntRange(1, 256), default=n_processors,
                    help="Threads that read and compare; they share the memory.  "
                    "[default: one for each processor]")  # fmt: skip
CLAIMS = click.option("--claims", required=True, metavar="FILE",
                      help="The claim file, or ready:NAME for one of ours.")  # fmt: skip
