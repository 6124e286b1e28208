"""Rows of text with their token boundaries."""

from __future__ import annotations

from dataclasses import dataclass

from lockstep.artifacts.samples import Sample
from lockstep.artifacts.tokenizer_roundtrip import RoundtripRow
from lockstep.report.evidence import RunEvidence

MAX_ROWS, MAX_TOKENS = 4, 160


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One token as it is shown."""

    id: int
    text: str
    control: bool


@dataclass(frozen=True, kw_only=True)
class TokenRow:
    """One row: what it is, and its first tokens."""

    title: str
    n_tokens: int
    pieces: tuple[Piece, ...]


def rows_of(run: RunEvidence) -> tuple[TokenRow, ...]:
    """Some rows of the data set, then some samples."""
    trip = run.roundtrip
    controls = set(trip.control_tags.values()) if trip else set()
    data = trip.sample_rows[:MAX_ROWS] if trip and run.vocabulary else ()
    samples = run.samples.rows[:MAX_ROWS] if run.samples else ()
    return (
        *(_data_row(row, run.vocabulary, controls) for row in data),
        *(_sample_row(i, sample, controls) for i, sample in enumerate(samples)),
    )


def _data_row(row: RoundtripRow, texts: dict[int, str], controls: set[int]) -> TokenRow:
    title = f"Row {row.line_no} of the data set, " + ("exact" if row.exact_match else "NOT exact")
    ids = row.token_ids[:MAX_TOKENS]
    pieces = tuple(_piece(id, texts.get(id, f"no token {id}"), controls) for id in ids)
    return TokenRow(title=title, n_tokens=row.token_count, pieces=pieces)


def _sample_row(index: int, sample: Sample, controls: set[int]) -> TokenRow:
    tokens = sample.tokens[:MAX_TOKENS]
    return TokenRow(
        title=f"Sample {index + 1}, prompt and completion",
        n_tokens=len(sample.tokens),
        pieces=tuple(_piece(token.id, token.text, controls) for token in tokens),
    )


def _piece(id: int, text: str, controls: set[int]) -> Piece:
    shown = text.replace("\n", "⏎").replace("\t", "⇥")
    return Piece(id=id, text=shown, control=id in controls)
