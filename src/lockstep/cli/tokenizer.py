"""`lockstep tokenizer`: trained on rows, and tried on every one of them."""

from __future__ import annotations

from pathlib import Path

import click

from lockstep.artifacts import make_directory
from lockstep.artifacts.tokenizer_roundtrip import TokenizerRoundtrip
from lockstep.cli.options import refuse_existing
from lockstep.cli.verb import Outcome, VerbGroup
from lockstep.data.roundtrip import check_round_trip
from lockstep.data.rows import read_rows
from lockstep.tokenizers import FILE, KINDS, PRE_TOKENIZERS, Kind, PreTokenizer, Tokenizer
from lockstep.tokenizers import train_tokenizer as train_on
from lockstep.training.prepare import control_tags
from lockstep.training.settings import DEFAULTS

_PATH = click.Path(path_type=Path)
_FORCE = click.option("--force", is_flag=True, help="Replace what is there.")


@click.group(cls=VerbGroup)
def command() -> None:
    """Train a tokenizer, and check that it gives every row back to the byte."""


@command.command()
@click.argument("file", type=_PATH)
@click.option("--out", type=_PATH, required=True,
              help="The directory for tokenizer.json; a run's makes it the run's.")  # fmt: skip
@click.option("--kind", type=click.Choice(KINDS), default=DEFAULTS["tokenizer"],
              show_default=True, help="Its alphabet: ASCII, or all bytes.")  # fmt: skip
@click.option("--vocab-size", type=int, default=512, show_default=True,
              help="Most ids: alphabet, merges, tags and the end token.")  # fmt: skip
@click.option("--pre-tokenizer", type=click.Choice(PRE_TOKENIZERS),
              default=DEFAULTS["pre_tokenizer"], show_default=True,
              help="How text is split before merges.")  # fmt: skip
@_FORCE
def train(
    file: Path, out: Path, kind: Kind, vocab_size: int, pre_tokenizer: PreTokenizer, force: bool
) -> Outcome:
    """Train a tokenizer on rows. Every tag in front of a row becomes one id."""
    refuse_existing([out / FILE], force=force)
    rows = read_rows(file)
    trained = train_on(kind, rows, vocab_size, control_tags(rows), pre_tokenizer)
    path = trained.save(make_directory(out))
    document = {
        "tokenizer": str(path),
        "sha256": trained.sha256,
        "kind": trained.kind,
        "pre_tokenizer": trained.pre_tokenizer,
        "vocab_size": trained.vocab_size,
        "tags": list(trained.tags),
        "rows": len(rows),
    }
    text = f"{trained.vocab_size} ids, {len(trained.tags)} of them tags, from {len(rows)} rows"
    return Outcome(document, f"{text}\nwrote {path}\nnext: lockstep tokenizer check {path} {file}")


@command.command()
@click.argument("tokenizer_path", type=_PATH, metavar="TOKENIZER")
@click.argument("file", type=_PATH)
@click.option("--out", type=_PATH,
              help="Directory of the record.  [default: that of TOKENIZER]")  # fmt: skip
@_FORCE
def check(tokenizer_path: Path, file: Path, out: Path | None, force: bool) -> Outcome:
    """Encode and decode every row. The exit code is 1 unless all come back to the byte.

    TOKENIZER is a tokenizer.json, or a directory that holds one, such as a run's.
    """
    path = tokenizer_path / FILE if tokenizer_path.is_dir() else tokenizer_path
    out = out or path.parent
    refuse_existing([out / TokenizerRoundtrip.file], force=force)
    found = check_round_trip(Tokenizer.load(path), file, path)
    saved = found.save(out)
    lines = [
        f"line {m.line_no}: byte {m.offset}: expected {m.expected_byte}, got {m.got_byte}"
        for m in found.mismatch_samples
    ]
    lines += [f"{tag}: expected one id everywhere, got several" for tag in found.split_tags]
    done = found.line_eval
    lines.append(
        f"{found.status}: {done.exact_match_lines} of {done.evaluated_lines} rows equal to the "
        f"byte, {found.token_count} tokens; wrote {saved}"
    )
    return Outcome(found.document(), "\n".join(lines), int(found.status != "pass"))
