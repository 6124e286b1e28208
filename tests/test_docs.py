"""The pages say what the code does: generated pages are current, links lead somewhere."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import click
import pytest

from lockstep import __version__
from lockstep.cli.main import VERBS, lockstep

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)\s]*)?\)")


def load_generator() -> ModuleType:
    spec = spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["cli.md", "artifacts.md"])
def test_a_generated_page_is_current(name: str) -> None:
    page = load_generator().PAGES[name]()
    assert (ROOT / "docs" / name).read_text() == page, "run `make docs` and commit what it writes"


def broken_links(text: str, place: Path) -> list[str]:
    """The relative links of a page that lead nowhere."""
    targets = [t for t in LINK.findall(text) if not t.startswith(("http://", "https://"))]
    return [target for target in targets if not (place / target).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    assert not broken_links(page.read_text(), page.parent)


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("")
    text = "[a](there.md#top) [b](gone.md) [c](https://example.org/gone.md)"
    assert broken_links(text, tmp_path) == ["gone.md"]


COMMAND = re.compile(r"^ {4}(?:\$ )?lockstep ([a-z].*)$|`lockstep ([a-z][^`]*)`", re.MULTILINE)


def wrong_commands(text: str) -> list[str]:
    """The commands on a page that have a verb or an option which does not exist."""
    found = [indented or inline for indented, inline in COMMAND.findall(text)]
    return [command for command in found if not _exists(command.split("#")[0].split())]


def _exists(words: list[str]) -> bool:
    context = click.Context(lockstep)
    command: click.Command | None = lockstep
    while isinstance(command, click.Group):
        command = command.get_command(context, words.pop(0)) if words else command
        if not words:
            break
    if command is None:
        return False
    options = {name for p in command.params for name in (*p.opts, *p.secondary_opts)} | {"--help"}
    asked = {
        word.strip("[]").partition("=")[0] for word in words if word.strip("[").startswith("-")
    }
    return asked <= options


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_on_a_page_exist(page: Path) -> None:
    assert not wrong_commands(page.read_text())


def test_a_command_that_does_not_exist_is_found() -> None:
    text = "`lockstep doctor --json` `lockstep cure`\n\n    lockstep doctor --fast  # now\n"
    assert wrong_commands(text) == ["cure", "doctor --fast  # now"]


def test_the_op_of_the_page_keeps_the_laws(tmp_path: Path) -> None:
    """Follows docs/add-an-op.md in a copy of the source."""
    page = (ROOT / "docs" / "add-an-op.md").read_text()
    blocks = dict(re.findall(r"^```(python|c)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL))
    for folder in ("src", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.pyc"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    ops = tmp_path / "src" / "lockstep" / "ops"
    (ops / "square.py").write_text(blocks["python"])
    (ops / "square.c").write_text(blocks["c"])
    with (ops / "__init__.py").open("a") as file:
        file.write("import lockstep.ops.square\n")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    environment["PYTHONPATH"] = str(tmp_path / "src")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "tests/test_ops.py", "-k", "square"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert re.search(r"^\d{2,} passed", done.stdout, re.MULTILINE), done.stdout


def test_the_readme_leads_to_every_page() -> None:
    linked = set(LINK.findall((ROOT / "README.md").read_text()))
    assert {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")} <= linked


def test_the_readme_lists_the_verbs_that_exist() -> None:
    rows = re.findall(r"^\| `lockstep ([a-z]+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert rows == list(VERBS), "give each verb one row in the table of the README"


def test_the_changelog_has_this_version() -> None:
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()
