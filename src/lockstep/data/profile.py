"""Counting a data set: lengths, repeated rows, characters, tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

from lockstep.artifacts import content_hash, utc_now
from lockstep.artifacts.dataset_profile import (
    CharCount,
    DatasetProfile,
    DuplicateRow,
    Duplicates,
    HistogramBucket,
    LineLength,
    TokenCount,
    TokensPerRow,
)
from lockstep.data.grammar import CONTROL_TAGS
from lockstep.data.rows import read_rows
from lockstep.tokenizers import Tokenizer

_EDGES = (0, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096)
_TOP = 16


def profile_dataset(path: Path, tokenizer: Tokenizer | None = None) -> DatasetProfile:
    """The record of a file of rows; tokens are counted if there is a tokenizer.

    Raises: InputError if the file is empty, not UTF-8, or outside the tokenizer's alphabet.
    """
    path = Path(path)
    rows = read_rows(path)
    chars = Counter("".join(rows))
    ids = None
    if tokenizer is not None:
        ids = [tokenizer.encode_row(row, where=f"{path}:{i}") for i, row in enumerate(rows, 1)]
    return DatasetProfile(
        path=str(path),
        dataset_dir=str(path.parent),
        dataset_name=path.stem,
        sha256=content_hash(path),
        total_lines=path.read_bytes().count(b"\n"),
        non_empty_lines=len(rows),
        total_chars=chars.total(),
        line_length=_line_length([len(row) for row in rows]),
        duplicates=_duplicates(rows),
        top_chars=tuple(
            CharCount(char=c, codepoint=f"U+{ord(c):04X}", count=n) for c, n in _top(chars)
        ),
        token_count=None if ids is None else sum(map(len, ids)),
        tokens_per_row=None if ids is None or tokenizer is None else _per_row(ids, tokenizer),
        top_tokens=None if ids is None or tokenizer is None else _top_tokens(ids, tokenizer),
        tag_counts={tag: sum(tag in row for row in rows) for tag in CONTROL_TAGS},
        generated_at=utc_now(),
    )


_T = TypeVar("_T", str, int)


def _top(counts: Counter[_T]) -> list[tuple[_T, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_TOP]


def _line_length(lengths: Sequence[int]) -> LineLength:
    ranges = [*pairwise(_EDGES), (_EDGES[-1], None)]
    histogram = tuple(
        HistogramBucket(
            bucket=f">={low}" if high is None else f"{low}-{high - 1}",
            low=low,
            high=None if high is None else high - 1,
            count=sum(low <= n and (high is None or n < high) for n in lengths),
        )
        for low, high in ranges
    )
    return LineLength(
        avg=sum(lengths) / len(lengths), min=min(lengths), max=max(lengths), histogram=histogram
    )


def _duplicates(rows: Sequence[str]) -> Duplicates:
    repeated = Counter({row: n for row, n in Counter(rows).items() if n > 1})
    return Duplicates(
        duplicate_unique_rows=len(repeated),
        duplicate_rows_total=repeated.total(),
        top_rows=tuple(
            DuplicateRow(line=row, chars=len(row), count=n) for row, n in _top(repeated)
        ),
    )


def _percentile(lengths: Sequence[int], percent: int) -> int:
    """The smallest length that so many percent of the rows do not exceed."""
    return sorted(lengths)[-(-percent * len(lengths) // 100) - 1]


def _per_row(ids: Sequence[Sequence[int]], tokenizer: Tokenizer) -> TokensPerRow:
    tags = {tokenizer.token_id(tag) for tag in tokenizer.tags}
    lengths = [len(row) for row in ids]
    completions = [sum(id_ not in tags for id_ in row) for row in ids]
    return TokensPerRow(
        avg=sum(lengths) / len(lengths),
        min=min(lengths),
        max=max(lengths),
        p50=_percentile(lengths, 50),
        p95=_percentile(lengths, 95),
        p99=_percentile(lengths, 99),
        completion_p95=_percentile(completions, 95),
        completion_p99=_percentile(completions, 99),
        completion_max=max(completions),
    )


def _top_tokens(ids: Sequence[Sequence[int]], tokenizer: Tokenizer) -> tuple[TokenCount, ...]:
    counts = Counter(id_ for row in ids for id_ in row)
    pieces = tokenizer.pieces
    return tuple(TokenCount(id=i, piece=pieces[i], count=n) for i, n in _top(counts))
