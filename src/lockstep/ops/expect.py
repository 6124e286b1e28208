"""Checks that type rules share; the message names the op and the input."""

from __future__ import annotations

from lockstep.errors import UsageError
from lockstep.ir import Dim, Type


def expect_type(where: str, got: Type, expected: Type) -> None:
    """Refuses a type that is not the expected one.

    Raises: UsageError that names both.
    """
    if got != expected:
        raise UsageError(
            f"{where}: expected {expected}, got {got}", hint="check the graph's shapes"
        )


def expect_rank(where: str, got: Type, rank: int) -> None:
    """Refuses a type with another number of axes.

    Raises: UsageError that names both.
    """
    if len(got.dims) != rank:
        raise UsageError(
            f"{where}: expected {rank} axes, got {got}", hint="check the graph's shapes"
        )


def whole(where: str, dim: Dim) -> int:
    """The dimension, which must be known when the graph is built.

    Raises: UsageError if it is a symbol.
    """
    if isinstance(dim, str):
        raise UsageError(f"{where}: expected a number, got the symbol {dim}", hint="fix this size")
    return dim


def parts(where: str, total: Dim, part: int) -> int:
    """How many parts of this width the total has.

    Raises: UsageError if it does not divide evenly.
    """
    count, rest = divmod(whole(where, total), part)
    if rest or not count:
        raise UsageError(
            f"{where}: expected a multiple of {part}, got {total}", hint="check the head counts"
        )
    return count
