"""Encoding and decoding every row of a corpus, compared byte by byte."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from lockstep.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class RowTrip:
    """One row after the trip."""

    line_no: int
    source: str
    decoded: str
    ids: tuple[int, ...]

    @property
    def exact(self) -> bool:
        return self.source == self.decoded

    @property
    def first_difference(self) -> tuple[int, int | None, int | None] | None:
        """Offset in bytes, expected byte and found byte of the first difference; None past an end.

        Units: offset in bytes.
        """
        pairs = zip_longest(self.source.encode("utf-8"), self.decoded.encode("utf-8"))
        for offset, (expected, got) in enumerate(pairs):
            if expected != got:
                return offset, expected, got
        return None


@dataclass(frozen=True, slots=True)
class RoundTrip:
    """Every row of a corpus after the trip, and the id of each control tag."""

    rows: tuple[RowTrip, ...]
    split_tags: tuple[str, ...]  # control tags that are not one id everywhere
    repeatable: bool  # a second encoding gave the same ids

    @property
    def exact(self) -> bool:
        """Whether something was compared and all of it came back."""
        rows = self.rows
        return bool(rows) and all(r.exact for r in rows) and self.repeatable and not self.split_tags

    @property
    def n_equal_bytes(self) -> int:
        """How many bytes of the sources stand at the same place in what came back."""
        return sum(
            a == b
            for row in self.rows
            for a, b in zip(row.source.encode("utf-8"), row.decoded.encode("utf-8"), strict=False)
        )


def round_trip(tokenizer: Tokenizer, rows: Sequence[str]) -> RoundTrip:
    """Encodes every row twice and decodes it.

    Raises: InputError naming row, column and character outside the alphabet.
    """
    trips: list[RowTrip] = []
    repeatable = True
    names = (*tokenizer.tags, tokenizer.eos)
    split = {n for n in names if tokenizer.encode_row(n) != [tokenizer.token_id(n)]}
    for line_no, row in enumerate(rows, start=1):
        ids = tokenizer.encode_row(row, where=f"row {line_no}")
        repeatable &= ids == tokenizer.encode_row(row)
        split |= {n for n in names if row.count(n) != ids.count(tokenizer.token_id(n))}
        trips.append(RowTrip(line_no, row, tokenizer.decode(ids), tuple(ids)))
    return RoundTrip(tuple(trips), tuple(n for n in names if n in split), repeatable)
