"""`lockstep data`: data sets built, taken in, checked, counted and drawn."""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random
from typing import Any

import click

from lockstep.artifacts import atomic_write_bytes, content_hash, make_directory
from lockstep.artifacts.dataset_profile import DatasetProfile
from lockstep.artifacts.dataset_qc import DatasetQc
from lockstep.cli.options import Finite, refuse_existing
from lockstep.cli.verb import Outcome, VerbGroup
from lockstep.data.assets import read_asset, read_assets
from lockstep.data.corpus import SPLITS, Corpus, build_corpus, corpus_of_rows, coverage
from lockstep.data.draw import draw
from lockstep.data.grammar import Prompt, all_prompts
from lockstep.data.profile import profile_dataset
from lockstep.data.quality import QcRules, check_dataset, svg_of_row
from lockstep.data.render import MAX_SIZE, render
from lockstep.data.rows import read_rows
from lockstep.errors import UsageError
from lockstep.tokenizers import Tokenizer

_RULES = QcRules()
_SHOWN = 20  # refused files that the text names; the document has all of them
_FILE = click.Path(path_type=Path)
_FORCE = click.option("--force", is_flag=True, help="Replace what is there.")
_OUT_DIR = click.option("--out", type=_FILE, required=True,
                        help="The directory for train.txt, dev.txt and holdout.txt.")  # fmt: skip


@click.group(cls=VerbGroup)
def command() -> None:
    """Build, take in, check and look at data sets: files with one row to a line."""


@command.command()
@_OUT_DIR
@click.option("--rows-per-prompt", type=click.IntRange(1, 1000), default=8, show_default=True,
              help="Most drawings of each prompt.")  # fmt: skip
@click.option("--seed", type=int, default=42, show_default=True, help="Seed of the drawings.")
@_FORCE
def make(out: Path, rows_per_prompt: int, seed: int, force: bool) -> Outcome:
    """Build the corpus of the tag contract. Every tag is checked against its drawing."""
    _refuse_splits(out, force)
    make_directory(out)
    length = rows_per_prompt * len(all_prompts())
    with click.progressbar(length=length, label="drawing", file=sys.stderr) as bar:

        def drawn(prompt: Prompt, rng: Random) -> str:
            bar.update(1)
            return draw(prompt, rng)

        corpus = build_corpus(rows_per_prompt=rows_per_prompt, seed=seed, drawn_by=drawn)
    counts = coverage(corpus.train)
    document = {
        **_saved(corpus, out),
        "seed": seed,
        "rows_per_prompt": rows_per_prompt,
        "rows_per_tag": counts.tags,
        "fewest_rows_per_pair_of_tags": min(counts.pairs.values()),
    }
    return Outcome(document, _said_of(document))


@command.command()
@click.option("--assets-glob", required=True, metavar="GLOB",
              help="The SVG files, for example 'icons/**/*.svg'; quote it.")  # fmt: skip
@_OUT_DIR
@click.option("--map-symbols/--keep-symbols", default=True, show_default=True,
              help="Spell common symbols in ASCII; all others are references.")  # fmt: skip
@_FORCE
def assets(assets_glob: str, out: Path, map_symbols: bool, force: bool) -> Outcome:
    """Take in a folder of SVG files. Each gives one row; what is not safe is refused and named."""
    _refuse_splits(out, force)
    found = read_assets(assets_glob, map_common=map_symbols)
    document = {
        **_saved(corpus_of_rows(asset.row for asset in found.rows), out),
        "copies": [str(path) for path in found.copies],
        "refused": [{"path": str(r.path), "reason": r.reason} for r in found.refused],
    }
    lines = [f"refused: {refused.reason}" for refused in found.refused[:_SHOWN]]
    if len(found.refused) > _SHOWN:
        lines.append(f"... and {len(found.refused) - _SHOWN} more; --json names all")
    lines.append(f"{len(found.rows)} files taken, {len(found.copies)} copies of these left out, "
                 f"{len(found.refused)} refused")  # fmt: skip
    return Outcome(document, "\n".join([*lines, _said_of(document)]))


@command.command()
@click.argument("file", type=_FILE)
@click.option("--require-ascii/--no-require-ascii", default=_RULES.require_ascii,
              show_default=True, help="Fail on what is not printable ASCII.")  # fmt: skip
@click.option("--require-svg-rows/--no-require-svg-rows", default=_RULES.require_svg_rows,
              show_default=True, help="Fail on rows that are not [tags]<svg ...>.")  # fmt: skip
@click.option("--require-contract", is_flag=True,
              help="Fail on rows with a tag that is not true of the drawing.")  # fmt: skip
@click.option("--max-row-chars", type=click.IntRange(1), default=_RULES.max_row_chars,
              show_default=True, help="Fail on longer rows.")  # fmt: skip
@click.option("--max-duplicate-ratio", type=Finite(0, 1),
              default=_RULES.max_duplicate_ratio, show_default=True,
              help="Fail if a larger share of the rows repeats others.")  # fmt: skip
@click.option("--out", type=_FILE, help="Directory of dataset_qc.json.  [default: that of FILE]")
@_FORCE
def check(file: Path, out: Path | None, force: bool, **rules: Any) -> Outcome:
    """Run the quality gates over rows. The exit code is 1 if one fails."""
    out = out or file.parent
    refuse_existing([out / DatasetQc.file], force=force)
    found = check_dataset(file, QcRules(**rules))
    path = found.save(out)
    lines = [f"{v.gate}: line {v.line_no}: {v.problem}" for v in found.violations]
    lines += [f"{gate:7} {name}" for name, gate in vars(found.checks).items()]
    lines.append(f"{found.status}: {found.non_empty_lines} rows of {file}; wrote {path}")
    return Outcome(found.document(), "\n".join(lines), int(found.status != "pass"))


@command.command()
@click.argument("file", type=_FILE)
@click.option("--tokenizer", "tokenizer_path", type=_FILE,
              help="Count tokens too: a tokenizer.json, or the directory of one.")  # fmt: skip
@click.option("--out", type=_FILE,
              help="Directory of dataset_profile.json.  [default: that of FILE]")  # fmt: skip
@_FORCE
def profile(file: Path, tokenizer_path: Path | None, out: Path | None, force: bool) -> Outcome:
    """Count what a file of rows holds. Tokens are counted if there is a tokenizer."""
    out = out or file.parent
    refuse_existing([out / DatasetProfile.file], force=force)
    found = profile_dataset(file, Tokenizer.load(tokenizer_path) if tokenizer_path else None)
    path = found.save(out)
    lengths, repeated = found.line_length, found.duplicates.duplicate_unique_rows
    lines = [
        f"{found.non_empty_lines} rows, {found.total_chars} characters, {repeated} rows repeated",
        f"rows of {lengths.min} to {lengths.max} characters, {lengths.avg:.0f} on average",
    ]
    if (per_row := found.tokens_per_row) is not None:
        lines.append(f"rows of {per_row.min} to {per_row.max} tokens, {per_row.avg:.0f} on average")
    return Outcome(found.document(), "\n".join([*lines, f"wrote {path}"]))


@command.command("render")
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--row", "row_no", type=click.IntRange(1), default=1, show_default=True,
              help="Which row of a file of rows.")  # fmt: skip
@click.option("--out", type=_FILE, required=True, help="The PNG file.")
@click.option("--size", type=click.IntRange(1, MAX_SIZE), default=256, show_default=True,
              help="Width and height in pixels.")  # fmt: skip
@_FORCE
def render_file(file: Path, row_no: int, out: Path, size: int, force: bool) -> Outcome:
    """Draw one row as a PNG. FILE has rows, or is an SVG file, or is - for standard input."""
    refuse_existing([out], force=force)
    svg = svg_of_row(_row(file, row_no))
    path = atomic_write_bytes(out, render(svg, size))
    return Outcome({"png": str(path), "svg": svg, "size": size}, f"wrote {path}")


def _row(file: Path, row_no: int) -> str:
    if file.suffix.lower() == ".svg":
        return read_asset(file)
    rows = read_rows(Path("/dev/stdin") if str(file) == "-" else file)
    if row_no > len(rows):
        raise UsageError(
            f"--row: expected at most {len(rows)}, the rows of {file}, got {row_no}",
            hint="choose a smaller number",
        )
    return rows[row_no - 1].strip()


def _refuse_splits(out: Path, force: bool) -> None:
    refuse_existing((out / f"{split}.txt" for split in SPLITS), force=force)


def _saved(corpus: Corpus, out: Path) -> dict[str, Any]:
    """Writes a corpus; what was written, split by split."""
    files = corpus.save(out)
    splits = {
        split: {
            "path": str(path),
            "rows": len(corpus.rows(split)),
            "sha256": content_hash(path),
        }
        for split, path in files.items()
    }
    return {"directory": str(out), "splits": splits}


def _said_of(document: dict[str, Any]) -> str:
    rows = ", ".join(f"{part['rows']} rows in {n}.txt" for n, part in document["splits"].items())
    directory = document["directory"]
    return f"{rows}\n{directory}\nnext: lockstep train RUN --data {directory}"
