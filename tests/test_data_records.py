"""Gates, profile and round trip of a data set: what passes, what fails, what is written."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from lockstep.artifacts.dataset_profile import DatasetProfile
from lockstep.artifacts.dataset_qc import DatasetQc
from lockstep.artifacts.tokenizer_roundtrip import TokenizerRoundtrip
from lockstep.data.corpus import build_corpus
from lockstep.data.grammar import CONTROL_TAGS
from lockstep.data.profile import profile_dataset
from lockstep.data.quality import QcRules, check_dataset
from lockstep.data.roundtrip import check_round_trip, round_trip_record
from lockstep.errors import InputError
from lockstep.tokenizers import Tokenizer, round_trip, train_tokenizer

CORPUS = build_corpus(rows_per_prompt=1, seed=1)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer("ascii_bpe", CORPUS.train, 512, CONTROL_TAGS)


def written(directory: Path, data: bytes | str) -> Path:
    path = directory / "train.txt"
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


GOOD = "".join(row + "\n" for row in CORPUS.train[:50])
TRUE_ROW = "[circle][palette:cool][style:filled][layout:center]"
FALSE_ROW = (
    TRUE_ROW + '<svg fill="red" viewBox="0 0 64 64"><circle cx="32" cy="32" r="8"/></svg><eos>\n'
)


def test_good_rows_pass_every_gate(tmp_path: Path) -> None:
    record = check_dataset(written(tmp_path, GOOD), QcRules(require_contract=True))
    assert record.status == "pass"
    assert (record.non_empty_lines, record.total_lines) == (50, 50)
    assert record.violations == ()
    assert record.sha256 == hashlib.sha256(GOOD.encode()).hexdigest()
    record.save(tmp_path)
    assert DatasetQc.load(tmp_path) == record


@pytest.mark.parametrize(
    ("gate", "data"),
    [
        ("utf8_gate", GOOD.encode() + b"<svg>\xff</svg>\n"),
        ("non_empty_gate", b""),
        ("non_empty_gate", b"\n\n"),
        ("ascii_gate", GOOD + "<svg><title>\u00e9</title></svg>\n"),
        ("ascii_gate", GOOD + "<svg>\x7f</svg>\n"),
        ("svg_row_gate", GOOD + "hello\n"),
        ("svg_row_gate", GOOD + "<task>x</task><svg></svg>\n"),
        ("svg_row_gate", GOOD + "<svg><g></svg>\n"),
        ("svg_row_gate", GOOD + "<svg><script/></svg>\n"),
        ("contract_gate", GOOD + FALSE_ROW),
        ("contract_gate", GOOD + "<svg></svg>\n"),
        ("duplicates_gate", FALSE_ROW * 3),
        ("row_length_gate", GOOD + f"<svg><title>{'a' * 70_000}</title></svg>\n"),
    ],
)
def test_each_gate_fails_and_says_where(tmp_path: Path, gate: str, data: bytes | str) -> None:
    record = check_dataset(written(tmp_path, data), QcRules(require_contract=True))
    assert record.status == "fail"
    assert gate in record.checks.failed
    assert gate in {violation.gate for violation in record.violations}
    record.save(tmp_path)
    assert DatasetQc.load(tmp_path).status == "fail"


def test_a_gate_that_nobody_asked_for_is_skipped(tmp_path: Path) -> None:
    rules = QcRules(require_ascii=False, require_svg_rows=False)
    record = check_dataset(written(tmp_path, "caf\u00e9\n"), rules)
    assert record.status == "pass"
    assert {record.checks.ascii_gate, record.checks.svg_row_gate} == {"skipped"}


def test_a_verdict_that_does_not_follow_cannot_be_written(tmp_path: Path) -> None:
    record = check_dataset(written(tmp_path, "hello\n"))
    document = {k: v for k, v in record.document().items() if k != "status"}
    with pytest.raises(InputError, match="status"):
        DatasetQc.from_document({**document, "status": "pass"}, "forged")


def test_a_profile_counts_by_hand(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = written(tmp_path, FALSE_ROW * 2 + "<svg></svg>\n")
    profile = profile_dataset(path, tokenizer)
    n, short = len(FALSE_ROW) - 1, len("<svg></svg>")
    assert (profile.total_lines, profile.total_chars) == (3, 2 * n + short)
    assert (profile.line_length.min, profile.line_length.max) == (short, n)
    assert sum(bucket.count for bucket in profile.line_length.histogram) == 3
    assert profile.duplicates.duplicate_rows_total == 2
    assert profile.duplicates.top_rows[0].count == 2
    assert profile.tag_counts["[circle]"] == 2
    n_ids = len(tokenizer.encode_row(FALSE_ROW[:-1]))
    assert profile.tokens_per_row is not None
    assert profile.tokens_per_row.p50 == profile.tokens_per_row.max == n_ids
    assert profile.tokens_per_row.completion_max == n_ids - 4
    profile.save(tmp_path)
    assert DatasetProfile.load(tmp_path) == profile


def test_tokens_that_were_not_counted_are_null(tmp_path: Path) -> None:
    profile = profile_dataset(written(tmp_path, GOOD))
    assert profile.token_count is profile.tokens_per_row is profile.top_tokens is None


def test_every_row_goes_through_the_tokenizer(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = written(tmp_path, GOOD)
    record = check_round_trip(tokenizer, path, tmp_path / "tokenizer.json")
    assert (record.status, record.exact_match, record.byte_match_rate) == ("pass", True, 1.0)
    assert record.line_eval.evaluated_lines == record.line_eval.total_non_empty_lines == 50
    assert record.control_tags.keys() == {*CONTROL_TAGS, "<eos>"}
    record.save(tmp_path)
    assert TokenizerRoundtrip.load(tmp_path) == record


def test_a_row_that_does_not_come_back_is_a_fail(tmp_path: Path, tokenizer: Tokenizer) -> None:
    document = json.loads(tokenizer.document)
    broken = Tokenizer(json.dumps({**document, "decoder": None}))
    record = round_trip_record(round_trip(broken, CORPUS.dev), broken, tmp_path, tmp_path)
    assert (record.status, record.exact_match) == ("fail", False)
    assert record.mismatch_samples
    assert record.mismatch_rows
    record.save(tmp_path)
