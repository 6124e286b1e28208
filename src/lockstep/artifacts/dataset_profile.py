"""dataset_profile.json: what a data set looks like, in numbers."""

from __future__ import annotations

from dataclasses import dataclass

from lockstep.artifacts.record import Artifact


@dataclass(frozen=True, kw_only=True)
class HistogramBucket:
    """How many rows have a length in one range, both ends included; no `high` is open."""

    bucket: str
    low: int
    high: int | None
    count: int


@dataclass(frozen=True, kw_only=True)
class LineLength:
    """Lengths of rows. Units: characters."""

    avg: float
    min: int
    max: int
    histogram: tuple[HistogramBucket, ...]


@dataclass(frozen=True, kw_only=True)
class DuplicateRow:
    """A row that occurs more than once."""

    line: str
    chars: int
    count: int


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """Rows that occur more than once: different ones, all of them, the most frequent."""

    duplicate_unique_rows: int
    duplicate_rows_total: int
    top_rows: tuple[DuplicateRow, ...]


@dataclass(frozen=True, kw_only=True)
class CharCount:
    """A character and how often it occurs."""

    char: str
    codepoint: str
    count: int


@dataclass(frozen=True, kw_only=True)
class TokenCount:
    """A token and how often it occurs."""

    id: int
    piece: str
    count: int


@dataclass(frozen=True, kw_only=True)
class TokensPerRow:
    """Lengths of rows, and of what follows the prompt. Units: tokens."""

    avg: float
    min: int
    max: int
    p50: int
    p95: int
    p99: int
    completion_p95: int
    completion_p99: int
    completion_max: int


@dataclass(frozen=True, kw_only=True)
class DatasetProfile(Artifact, file="dataset_profile.json", schema="lockstep.dataset_profile/1"):
    """Counts over a data set; tokens only if a tokenizer was at hand.  History: 1 the first."""

    path: str
    dataset_dir: str
    dataset_name: str
    sha256: str
    total_lines: int
    non_empty_lines: int
    total_chars: int
    line_length: LineLength
    duplicates: Duplicates
    top_chars: tuple[CharCount, ...]
    token_count: int | None
    tokens_per_row: TokensPerRow | None
    top_tokens: tuple[TokenCount, ...] | None
    tag_counts: dict[str, int]
    generated_at: str
