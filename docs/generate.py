"""Writes what is made from the code: cli.md, artifacts.md, and the tables in claims.md."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, Literal, get_args, get_origin

import click

from lockstep import artifacts
from lockstep.artifacts import Artifact
from lockstep.cli.main import VERBS, lockstep
from lockstep.verify.claims.claim_file import READY, load_claims
from lockstep.verify.claims.steps import STEPS, Step

DOCS = Path(__file__).parent
NOTICE = "<!-- Made by docs/generate.py (`make docs`); edit the code that it describes. -->\n"

CLI_HEAD = """# Which verbs and options are there?

Every verb takes `--json`: stdout then holds exactly one JSON document, everything else goes to
stderr, and the exit code is the same. An error is a document too:
`{"error": {"kind", "message", "hint"}, "exit_code"}`.

| exit code | meaning |
|---|---|
| 0 | ok, or the gate passed |
| 1 | a gate failed, or values differ |
| 2 | wrong usage, configuration or claim |
| 3 | the environment lacks something: compiler, package, device, disk space |
| 4 | an input cannot be read, or is corrupt |
| 5 | refused by a budget of memory or tokens |
| 6 | only inexact equality was shown |
| 70 | a bug of ours; the traceback is shown |
| 130, 143, 141 | interrupted with Ctrl-C, or by SIGTERM; the reader of the output went away |
"""

ARTIFACTS_HEAD = """# What is in a run directory?

A run lives in `$LOCKSTEP_HOME/models/train/NAME` (without it in `~/.cache/lockstep/...`).
Nothing of it is elsewhere, so the directory can be copied or put into a tar file. Each JSON file
below is one record with the key `schema`. It is written to a temporary file, synced and renamed,
so it is never half written; reading refuses another schema, a missing or a surplus key, and names
it. A value that was not measured is `null` and has a reason beside it; it is never 0.

Types are in Python's spelling: `tuple[float, ...]` is a list of numbers, `dict[str, int]` an
object.
"""


def cli_page() -> str:
    """Every verb with its usage, arguments and options."""
    context = click.Context(lockstep, info_name="lockstep")
    parts = [NOTICE, CLI_HEAD]
    for name in VERBS:
        command = lockstep.get_command(context, name)
        assert command is not None
        parts += _command_sections(command, click.Context(command, context, info_name=name), 2)
    return "\n".join(parts)


def _command_sections(command: click.Command, context: click.Context, level: int) -> Iterator[str]:
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    help_text = inspect.cleandoc(command.help or "").replace("\b\n", "")
    yield f"{'#' * level} {context.command_path}\n"
    yield f"```\n{usage}\n```\n\n{help_text}\n"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from _command_sections(
                child, click.Context(child, context, info_name=name), level + 1
            )
        return
    yield "| option | values | default | meaning |\n|---|---|---|---|"
    yield "\n".join(map(_option_row, _own_options(command))) + "\n"


def _own_options(command: click.Command) -> list[click.Option]:
    return [p for p in command.params if isinstance(p, click.Option) and not p.hidden]


def _option_row(option: click.Option) -> str:
    names = ", ".join(f"`{n}`" for n in (*option.opts, *option.secondary_opts))
    if option.is_flag:
        values = "flag"
    elif isinstance(option.type, click.Choice):
        values = ", ".join(f"`{choice}`" for choice in option.type.choices)
    else:
        values = option.make_metavar(click.Context(lockstep)).lower()
    default = option.default
    shown = isinstance(default, str | int | float | Path) and default is not False
    cells = (names, values, f"`{default}`" if shown else "", option.help or "")
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def artifacts_page() -> str:
    """Every record of a run directory with its schema, its history and its keys."""
    parts = [NOTICE, ARTIFACTS_HEAD]
    for module in _record_modules():
        records = [c for c in _dataclasses(module) if issubclass(c, Artifact)]
        nested = [c for c in _dataclasses(module) if not issubclass(c, Artifact)]
        for record in records:
            parts.append(f"## {record.file}\n\nSchema `{record.schema}`. {_prose(record)}\n")
            parts.append(_fields_table(record))
        for part in nested if records else []:
            parts.append(f"`{part.__name__}`: {_prose(part)}\n")
            parts.append(_fields_table(part))
    return "\n".join(parts)


def _record_modules() -> list[Any]:
    names = sorted(module.name for module in iter_modules(artifacts.__path__))
    return [import_module(f"lockstep.artifacts.{name}") for name in names if name != "record"]


def _dataclasses(module: Any) -> list[type]:
    """The dataclasses that a module defines, in the order of its source."""
    found = [c for c in vars(module).values() if inspect.isclass(c) and dataclasses.is_dataclass(c)]
    return [c for c in found if c.__module__ == module.__name__ and not c.__name__.startswith("_")]


def _prose(record: type) -> str:
    return re.sub(r"\s+", " ", record.__doc__ or "").strip()


def _fields_table(record: type) -> str:
    rows = ["| key | type |", "|---|---|"]
    for field in dataclasses.fields(record):
        kind = str(field.type).replace("|", "\\|")
        rows.append(f"| `{field.metadata.get('key', field.name)}` | `{kind}` |")
    return "\n".join(rows) + "\n"


ARITIES = {
    "one": "Steps that move elements",
    "many": "Steps that join the sources of a claim",
    "value": "Steps that change values",
}


def claims_page() -> str:
    """The page as it is, with the tables that follow from the code made again."""
    page = (DOCS / "claims.md").read_text(encoding="utf-8")
    for name, table in (("steps", _steps()), ("ready", _ready_claims())):
        section = re.compile(rf"(<!-- {name}: [^\n]*-->\n).*?(<!-- end -->)", re.DOTALL)
        made = f"\n{table}\n\n"
        page, n = section.subn(lambda found, made=made: found[1] + made + found[2], page)  # type: ignore[misc]
        assert n == 1, f"claims.md: expected one section {name}, got {n}"
    return page


def _steps() -> str:
    lines = []
    for arity, title in ARITIES.items():
        lines += [f"| {title} | |", "|---|---|"]
        lines += [_step_row(step) for step in STEPS.values() if step.arity == arity]
        lines.append("")
    return "\n".join(lines).strip()


def _step_row(step: Step) -> str:
    """A step with its parameters, and the words that one of them may be."""
    words = [
        f"`{p.name}` is {', '.join(f'`{word}`' for word in get_args(p.annotation))}."
        for p in step.parameters
        if get_origin(p.annotation) is Literal
    ]
    return f"| `{step.signature}` | {' '.join([step.doc, *words])} |"


def _ready_claims() -> str:
    rows = [
        f"| `{path.stem}` | {load_claims(path).title} |" for path in sorted(READY.glob("*.toml"))
    ]
    return "\n".join(["| name | from, to |", "|---|---|", *rows])


PAGES = {"cli.md": cli_page, "artifacts.md": artifacts_page, "claims.md": claims_page}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")
        print(f"wrote docs/{name}")
