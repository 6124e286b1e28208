"""tokenizer_roundtrip.json: every row encoded and decoded, compared byte by byte."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lockstep.artifacts.record import Artifact
from lockstep.errors import InputError


@dataclass(frozen=True, kw_only=True)
class MismatchSample:
    """The first byte of a row that did not come back; None is past an end."""

    line_no: int
    offset: int
    expected_byte: int | None
    got_byte: int | None


@dataclass(frozen=True, kw_only=True)
class LineEval:
    """How many rows came back exactly; `max_lines` null means that there was no limit."""

    evaluated_lines: int
    total_non_empty_lines: int
    exact_match_lines: int
    exact_match_rate: float
    coverage_rate: float
    max_lines: int | None


@dataclass(frozen=True, kw_only=True)
class RoundtripRow:
    """One row with its ids, the first of them if there are many."""

    line_no: int
    token_count: int
    token_ids: tuple[int, ...]
    token_ids_truncated: bool
    source: str
    decoded: str
    exact_match: bool


@dataclass(frozen=True, kw_only=True)
class TokenizerRoundtrip(
    Artifact, file="tokenizer_roundtrip.json", schema="lockstep.tokenizer_roundtrip/1"
):
    """The trip of a data set through its tokenizer.  History: 1 the first."""

    status: Literal["pass", "fail"]
    tokenizer_mode: str
    pre_tokenizer: str
    vocab_size: int
    tokenizer_sha256: str
    token_count: int
    input_bytes: int
    decoded_bytes: int
    input_lines: int
    decoded_lines: int
    exact_match: bool
    byte_match_rate: float
    line_match_rate: float
    repeatable: bool
    control_tags: dict[str, int]
    split_tags: tuple[str, ...]
    mismatch_samples: tuple[MismatchSample, ...]
    dataset_path: str
    dataset_dir: str
    dataset_name: str
    tokenizer_json_path: str
    line_eval: LineEval
    sample_rows: tuple[RoundtripRow, ...]
    mismatch_rows: tuple[RoundtripRow, ...]
    generated_at: str

    def __post_init__(self) -> None:
        whole = self.line_eval.evaluated_lines == self.line_eval.total_non_empty_lines > 0
        whole = whole and self.line_eval.exact_match_lines == self.line_eval.evaluated_lines
        passed = self.exact_match and self.repeatable and not self.split_tags and whole
        if (self.status == "pass") != passed:
            raise InputError(
                f"tokenizer_roundtrip.json: status: expected it to follow from the rows, got "
                f"{self.status!r} with {self.line_eval.exact_match_lines} of "
                f"{self.line_eval.total_non_empty_lines} rows exact",
                hint="run the round trip again",
            )
