"""From a data set to training windows: checks, a copy in the run, tokenizer, round trip, packs."""

from __future__ import annotations

import re
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path

from lockstep.artifacts import RunDir, atomic_write_bytes, content_hash, make_directory, read_bytes
from lockstep.artifacts.dataset_profile import DatasetProfile
from lockstep.artifacts.dataset_qc import DatasetQc
from lockstep.artifacts.tokenizer_roundtrip import TokenizerRoundtrip
from lockstep.artifacts.train_config import TrainConfig
from lockstep.artifacts.train_settings import TrainSettings
from lockstep.data.grammar import CONTROL_TAGS, EOS
from lockstep.data.pack import Windows, pack
from lockstep.data.profile import profile_dataset
from lockstep.data.quality import QcRules, check_dataset
from lockstep.data.roundtrip import check_round_trip
from lockstep.data.rows import read_rows
from lockstep.errors import GateError, InputError, UsageError
from lockstep.tokenizers import Tokenizer, train_tokenizer

DATASET = "dataset"
TRAIN_FILE = "train.txt"
OTHER_SPLITS = ("dev.txt", "holdout.txt")
_HEAD = re.compile(r"(?:\[[^\[\]\s]+\])+")
_TAG = re.compile(r"\[[^\[\]\s]+\]")


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A data set that passed its gates, its tokenizer, and its windows."""

    path: Path
    source: str
    sha256: str
    n_rows: int
    n_bytes: int
    tokenizer: Tokenizer
    tokenizer_reused: bool
    windows: Windows
    qc: DatasetQc
    roundtrip: TokenizerRoundtrip
    profile: DatasetProfile


def prepare(
    run: RunDir,
    config: TrainConfig,
    settings: TrainSettings,
    data: Path | None,
    expect_tokenizer: str | None = None,
) -> Prepared:
    """Takes a data set into the run and makes windows of it; writes a record of each step.

    `data` is a file of rows, or a directory with train.txt and perhaps dev.txt and holdout.txt;
    None is what the run has. A resumed training expects a tokenizer with a certain hash.

    Raises: InputError if it is empty, not UTF-8 or too long; GateError if a gate fails; UsageError
    if data or tokenizer are not those of the run.
    """
    qc = stage_dataset(run, data, settings)
    path = run.path / DATASET / TRAIN_FILE
    rows = read_rows(path)
    tokenizer, reused = _tokenizer(run, config, settings, rows, expect_tokenizer)
    roundtrip = check_round_trip(tokenizer, path, run.tokenizer)
    roundtrip.save(run.path)
    _refuse_lossy(roundtrip, run)
    for other in _other_splits(path.parent):
        _refuse_lossy(check_round_trip(tokenizer, other, run.tokenizer), run)
    profile = profile_dataset(path, tokenizer)
    profile.save(run.path)
    return Prepared(
        path=path,
        source=str(data or path),
        sha256=qc.sha256,
        n_rows=len(rows),
        n_bytes=qc.bytes,
        tokenizer=tokenizer,
        tokenizer_reused=reused,
        windows=windows_of(rows, tokenizer, settings),
        qc=qc,
        roundtrip=roundtrip,
        profile=profile,
    )


def _refuse_lossy(trip: TokenizerRoundtrip, run: RunDir) -> None:
    if trip.status != "pass":
        raise GateError(
            f"{trip.dataset_path}: expected every row back to the byte, got "
            f"{trip.line_eval.exact_match_lines} of {trip.input_lines} rows",
            hint=f"look at mismatch_rows in {run.path / trip.file}",
        )


def _check_data(run: RunDir, data: Path | None, settings: TrainSettings) -> tuple[Path, DatasetQc]:
    """Checks all splits of a data set, or of the run's own.

    The verdict on a bad one is written if the run has no data yet, which it would be mistaken for.

    Raises: UsageError if there is none; InputError or GateError if it is bad.
    """
    own = run.path / DATASET / TRAIN_FILE
    if data is None and not own.exists():
        raise UsageError(
            f"run {run.name}: expected a data set, got none",
            hint="give one with --data, a file of rows or a directory with train.txt",
        )
    source = own if data is None else (data / TRAIN_FILE if data.is_dir() else data)
    rules = QcRules(
        require_ascii=settings.require_ascii, require_svg_rows=settings.require_svg_rows
    )
    qc = check_dataset(source, rules)
    if qc.status == "fail" and (source == own or not own.exists()):
        qc.save(run.path)
    _refuse_failed(qc, source)
    rows = set(read_rows(source))
    for other in _other_splits(source.parent) if data is None or data.is_dir() else ():
        _refuse_failed(check_dataset(other, rules), other)
        if shared := rows & set(read_rows(other)):
            raise GateError(
                f"{other}: expected no row of {source.name}, got {len(shared)}: {min(shared):.80}",
                hint="split the rows again, so that what is held out is never trained on",
            )
    return source, qc


def _other_splits(directory: Path) -> list[Path]:
    """The files of the other splits; a small data set may have no row for one of them."""
    paths = [directory / name for name in OTHER_SPLITS]
    return [path for path in paths if path.exists() and path.stat().st_size > 0]


def stage_dataset(run: RunDir, data: Path | None, settings: TrainSettings) -> DatasetQc:
    """Checks a data set and copies it into the run; the verdict is written also if it is bad.

    Raises: InputError, GateError or UsageError as `prepare` does.
    """
    own = run.path / DATASET / TRAIN_FILE
    source, qc = _check_data(run, data, settings)
    if own.exists() and content_hash(own) != qc.sha256:
        raise UsageError(
            f"{source}: expected the data set of run {run.name}, got another one",
            hint="leave --data out to go on with the run's own, or make another run",
        )
    qc = replace(qc, path=str(own), dataset_dir=str(own.parent))
    qc.save(run.path)
    if source != own:
        _copy_splits(source, data, own.parent)
    return qc


def _refuse_failed(qc: DatasetQc, source: Path) -> None:
    if qc.status == "pass":
        return
    where = "; ".join(f"line {v.line_no}: {v.problem}" for v in qc.violations[:3])
    unreadable = {"utf8_gate", "non_empty_gate"} & set(qc.checks.failed)
    raise (InputError if unreadable else GateError)(
        f"{source}: expected a data set that passes its gates, got {', '.join(qc.checks.failed)} "
        f"failed: {where}",
        hint="mend or drop these rows; dataset_qc.json has the details",
    )


def _copy_splits(source: Path, data: Path | None, target: Path) -> None:
    make_directory(target)
    if data is not None and data.is_dir():
        for other in _other_splits(data):
            atomic_write_bytes(target / other.name, read_bytes(other))
    # The file that says that a data set is there comes last.
    atomic_write_bytes(target / TRAIN_FILE, read_bytes(source))


def _tokenizer(
    run: RunDir,
    config: TrainConfig,
    settings: TrainSettings,
    rows: Sequence[str],
    expected: str | None,
) -> tuple[Tokenizer, bool]:
    """The run's tokenizer, trained here if the run has none yet."""
    reused = run.tokenizer.exists() or expected is not None
    if reused:
        tokenizer = Tokenizer.load(run.tokenizer, expect_sha256=expected)
        found = [
            f"{flag} is {have}, got {asked}"
            for flag, have, asked in (
                ("--tokenizer", tokenizer.kind, settings.tokenizer),
                ("--pre-tokenizer", tokenizer.pre_tokenizer, settings.pre_tokenizer),
            )
            if have != asked
        ]
        if found:
            raise UsageError(
                f"run {run.name}: expected its tokenizer, got another: {'; '.join(found)}",
                hint="leave these flags out, or make another run with `lockstep init`",
            )
    else:
        tokenizer = train_tokenizer(
            settings.tokenizer,
            rows,
            settings.bpe_vocab_size,
            control_tags(rows),
            settings.pre_tokenizer,
        )
    if tokenizer.vocab_size > config.vocab_size:
        raise UsageError(
            f"run {run.name}: expected a tokenizer of at most {config.vocab_size} ids, "
            f"got {tokenizer.vocab_size}",
            hint="choose a smaller --bpe-vocab-size, or a run with a larger --vocab-size",
        )
    if not reused:
        tokenizer.save(run.path)
    return tokenizer, reused


def control_tags(rows: Sequence[str]) -> tuple[str, ...]:
    """The tags that get an id of their own: those of the contract, and others in front of rows."""
    heads = [match[0] for row in rows if (match := _HEAD.match(row))]
    if not heads:
        return ()
    others = {tag for head in heads for tag in _TAG.findall(head)} - set(CONTROL_TAGS)
    return (*CONTROL_TAGS, *sorted(others))


def windows_of(rows: Sequence[str], tokenizer: Tokenizer, settings: TrainSettings) -> Windows:
    """Rows as training windows, each row ended by the end token.

    Without `prompt_loss` the tags in front of a row are read, not predicted: which prompt comes
    next is chance, and a loss on it only adds noise.

    Raises: InputError if a row is too long to be packed whole.
    """
    ends = (row if row.endswith(EOS) else row + EOS for row in rows)
    ids = [tokenizer.encode_row(row, where=f"row {i}") for i, row in enumerate(ends, 1)]
    tags = {tokenizer.token_id(tag) for tag in tokenizer.tags}
    n_ignored = [0 if settings.prompt_loss else _n_leading(row, tags) for row in ids]
    if settings.packing == "stream" and settings.total_tokens is not None:
        # One more, because the last token of a window is only a target.
        ids, n_ignored = _stream_of(ids, n_ignored, settings.total_tokens + 1)
    windows = pack(
        ids, settings.seq_len, settings.packing, pad_id=tokenizer.eos_id, n_ignored=n_ignored
    )
    return windows.with_targets()


def _stream_of(
    rows: list[list[int]], n_ignored: list[int], n_tokens: int
) -> tuple[list[list[int]], list[int]]:
    """The rows, again and again or cut, so that they are `n_tokens` long together.

    Repeated as one stream and not window by window, windows meet a row at every offset.
    """
    found: list[list[int]] = []
    ignored: list[int] = []
    for row, n in cycle(zip(rows, n_ignored, strict=True)):
        found.append(row[:n_tokens])
        ignored.append(min(n, len(found[-1])))
        n_tokens -= len(found[-1])
        if n_tokens == 0:
            break
    return found, ignored


def _n_leading(row: Sequence[int], tags: Set[int]) -> int:
    """How many tags stand in front of a row."""
    return next((i for i, id_ in enumerate(row) if id_ not in tags), len(row))
