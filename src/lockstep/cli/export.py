"""`lockstep export`: a model for other programs, written and then proved to be the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click

from lockstep.artifacts import Check
from lockstep.artifacts.codec import encode
from lockstep.cli.model_options import context_option, expect_context
from lockstep.cli.options import refuse_existing
from lockstep.cli.table import verdict_table
from lockstep.cli.verb import Outcome, Verb
from lockstep.engine.export_c import export_c
from lockstep.engine.export_gguf import EXPORT_TYPES, ExportType, export_gguf, lost_ends
from lockstep.engine.export_hf import HF_TYPES, export_hf
from lockstep.engine.source import Source, open_source
from lockstep.engine.text import open_tokenizer
from lockstep.errors import EnvironmentLacks, UsageError
from lockstep.formats.atomic import clear_leftovers, replace_directory, sync, workplace

Write = Callable[[Source, Path], None]
Prove = Callable[[Source, Path], list[Check]]


@click.command(cls=Verb)
@click.argument("model", metavar="MODEL")
@click.option("--to", "target", type=click.Choice(["gguf", "hf", "c"]), required=True,
              help="A GGUF file, a Hugging Face directory, or a folder of C.")  # fmt: skip
@click.option("--type", "wanted", type=click.Choice(EXPORT_TYPES),
              help="The type of matrices, in a directory of all.  [default: F32]")  # fmt: skip
@context_option("Tokens that a C program holds.")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True,
              help="The file or directory to write.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace what is there.")
def command(
    model: str, target: str, wanted: ExportType | None, context: int | None, out: Path, force: bool
) -> Outcome:
    """Write a model for other programs, read it back, and prove that it is the model.

    A folder of C builds with make and runs where there is no Python. MODEL is a run, a GGUF file, a
    Hugging Face directory or hf://ORG/REPO/FILE. An export that is not the model, to our reader or
    to another program that is installed, is not kept: exit code 1.
    """
    types: dict[str, tuple[str, ...]] = {"gguf": EXPORT_TYPES, "hf": HF_TYPES}
    if wanted is not None and wanted not in types.get(target, ()):
        known = ", ".join(types[target]) if target in types else "none"
        raise UsageError(
            f"--type: expected {known} with --to {target}, got {wanted}", hint="leave it out"
        )
    if context is not None and target != "c":
        raise UsageError(f"--ctx: expected it with --to c, got --to {target}", hint="leave it out")
    clear_leftovers(out.absolute())  # first, as they may hold what was there before
    refuse_existing([out], force=force, kind="file" if target == "gguf" else "directory")
    source = open_source(model)
    expect_context(source, context)
    open_tokenizer(source)  # what cannot be read is a fault of the model, not of the export
    lost = lost_ends(source) if target == "gguf" else None
    with _beside(out) as temporary:
        if target == "gguf":
            checks = _gguf(source, temporary, wanted or "F32")
        elif target == "hf":
            checks = _hf(source, temporary, wanted or "F32")
        else:
            checks = _c(source, temporary, context)
        kept = all(check.verdict != "fail" for check in checks)
        if kept:
            _move(temporary, out)
    document = {
        "model": model,
        "to": target,
        "type": wanted or ("F32" if target != "c" else "as stored"),
        "out": str(out),
        "written": kept,
        "ends_lost_to_llama_cpp": lost,
        "checks": [encode(check, "check") for check in checks],
    }
    return Outcome(document, "\n".join(_lines(checks, out, kept, lost)), 0 if kept else 1)


def _gguf(source: Source, path: Path, wanted: ExportType) -> list[Check]:
    from lockstep.proof.export import (  # with torch, which takes seconds to import
        expect_room_for_proof,
        prove_gguf,
    )

    expect_room_for_proof(source)
    _say("writing")
    export_gguf(source, path, wanted)
    return prove_gguf(source, path, wanted, _say)


def _hf(source: Source, path: Path, wanted: Any) -> list[Check]:
    from lockstep.proof.export import expect_room_for_proof, prove_hf

    expect_room_for_proof(source)
    _say("writing")
    export_hf(source, path, wanted)
    return prove_hf(source, path, wanted, _say)


def _c(source: Source, path: Path, context: int | None) -> list[Check]:
    from lockstep.proof.export_c import prove_c

    _say("writing")
    opened = export_c(source, path, context=context)
    return prove_c(opened, path, _say)


def _say(text: str) -> None:
    click.echo(text, err=True)


@contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """A name beside the final one, of which nothing is left in the end."""
    with ExitStack() as stack:
        try:
            out.absolute().parent.mkdir(parents=True, exist_ok=True)
            holder = stack.enter_context(workplace(out.absolute()))
        except OSError as error:
            raise EnvironmentLacks(
                f"{out}: cannot be written: {error}", hint="check free space and permissions"
            ) from error
        yield holder / out.name


def _move(made: Path, out: Path) -> None:
    """Gives what was proved its name."""
    try:
        if made.is_dir():
            replace_directory(made, out.absolute())
        else:
            made.replace(out)
        sync(out.absolute().parent)
    except OSError as error:
        raise EnvironmentLacks(
            f"{out}: cannot be written: {error}", hint="choose another --out"
        ) from error


def _lines(checks: list[Check], out: Path, kept: bool, lost: list[str] | None) -> Iterator[str]:
    yield verdict_table(checks)
    yield from (f"{c.verdict}: {c.name}: {c.reason}" for c in checks if c.verdict == "fail")
    if not kept:
        yield f"{out}: not written, it would not be the model"
        return
    if lost:
        yield (
            f"llama.cpp will not end an answer at {', '.join(lost)}: GGUF has three keys for such "
            "tokens; ollama and lockstep read all of them from tokenizer.ggml.eos_token_ids"
        )
    n_missing = sum(check.verdict == "missing" for check in checks)
    rest = f"; {n_missing} proofs are missing" if n_missing else ""
    yield f"{out}: written and proved{rest}"
