"""The record of a data set's trip through its tokenizer."""

from __future__ import annotations

from pathlib import Path

from lockstep.artifacts import utc_now
from lockstep.artifacts.tokenizer_roundtrip import (
    LineEval,
    MismatchSample,
    RoundtripRow,
    TokenizerRoundtrip,
)
from lockstep.data.rows import read_rows
from lockstep.tokenizers import RoundTrip, RowTrip, Tokenizer, round_trip

_MAX_ROWS = 16
_MAX_IDS = 96


def check_round_trip(
    tokenizer: Tokenizer, dataset: Path, tokenizer_path: Path
) -> TokenizerRoundtrip:
    """Sends every row of a file through the tokenizer and records what came back.

    Raises: InputError if the file is empty, not UTF-8, or outside the alphabet.
    """
    trip = round_trip(tokenizer, read_rows(Path(dataset)))
    return round_trip_record(trip, tokenizer, Path(dataset), Path(tokenizer_path))


def round_trip_record(
    trip: RoundTrip, tokenizer: Tokenizer, dataset: Path, tokenizer_path: Path
) -> TokenizerRoundtrip:
    """The record of a trip that was made."""
    rows = trip.rows
    wrong = [row for row in rows if not row.exact]
    n_bytes = sum(len(row.source.encode("utf-8")) for row in rows)
    n_exact = len(rows) - len(wrong)
    names = (*tokenizer.tags, tokenizer.eos)
    return TokenizerRoundtrip(
        status="pass" if trip.exact else "fail",
        tokenizer_mode=tokenizer.kind,
        pre_tokenizer=tokenizer.pre_tokenizer,
        vocab_size=tokenizer.vocab_size,
        tokenizer_sha256=tokenizer.sha256,
        token_count=sum(len(row.ids) for row in rows),
        input_bytes=n_bytes,
        decoded_bytes=sum(len(row.decoded.encode("utf-8")) for row in rows),
        input_lines=len(rows),
        decoded_lines=sum(1 + row.decoded.count("\n") for row in rows),
        exact_match=bool(rows) and not wrong,
        byte_match_rate=trip.n_equal_bytes / n_bytes if n_bytes else 0.0,
        line_match_rate=n_exact / len(rows) if rows else 0.0,
        repeatable=trip.repeatable,
        control_tags={name: tokenizer.token_id(name) for name in names},
        split_tags=trip.split_tags,
        mismatch_samples=tuple(_mismatch(row) for row in wrong[:_MAX_ROWS]),
        dataset_path=str(dataset),
        dataset_dir=str(dataset.parent),
        dataset_name=dataset.stem,
        tokenizer_json_path=str(tokenizer_path),
        line_eval=LineEval(
            evaluated_lines=len(rows),
            total_non_empty_lines=len(rows),
            exact_match_lines=n_exact,
            exact_match_rate=n_exact / len(rows) if rows else 0.0,
            coverage_rate=1.0 if rows else 0.0,
            max_lines=None,
        ),
        sample_rows=tuple(_row(row) for row in rows[:_MAX_ROWS]),
        mismatch_rows=tuple(_row(row) for row in wrong[:_MAX_ROWS]),
        generated_at=utc_now(),
    )


def _mismatch(row: RowTrip) -> MismatchSample:
    difference = row.first_difference
    assert difference is not None
    offset, expected, got = difference
    return MismatchSample(line_no=row.line_no, offset=offset, expected_byte=expected, got_byte=got)


def _row(row: RowTrip) -> RoundtripRow:
    return RoundtripRow(
        line_no=row.line_no,
        token_count=len(row.ids),
        token_ids=row.ids[:_MAX_IDS],
        token_ids_truncated=len(row.ids) > _MAX_IDS,
        source=row.source,
        decoded=row.decoded,
        exact_match=row.exact,
    )
